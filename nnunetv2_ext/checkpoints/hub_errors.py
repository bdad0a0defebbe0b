"""What went wrong on the way to the hub, in one line that says what to do.

The hub's client reports one fault in several forms (the server's answer, the network's, its own), often one as the
cause of another. Here the chain is searched for the one that a user can act on.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from nnunetv2_ext.checkpoints.hub_address import HubAddress
from nnunetv2_ext.errors import UserError

_NETWORK_LIBRARIES = ("httpx2", "httpx", "httpcore2", "httpcore", "requests", "urllib3")
_BROKEN_OFF = ("RemoteProtocolError", "ReadError", "IncompleteRead", "ChunkedEncodingError", "ProtocolError")


def explain_hub_error(error: Exception, address: HubAddress, file_name: str) -> UserError:
    """Turn what the hub's client raised while fetching a file into a one-line error with a remedy."""
    from huggingface_hub import constants

    repo, endpoint = address.repo_id, constants.ENDPOINT
    chain = list(_causes(error))
    explained = (
        _explain_offline(chain, address)
        or _explain_answer(chain, address, file_name, endpoint)
        or _explain_disk(chain, file_name)
        or _explain_network(chain, repo, endpoint)
    )
    if explained is not None:
        return UserError(explained)
    first_line = next(iter(str(error).strip().splitlines()), "")
    return UserError(
        f"Fetching {file_name} of {address} from {endpoint} failed ({type(error).__name__}: {first_line}): "
        "try again, or download the repository by hand and give its folder."
    )


def _explain_offline(chain: list[BaseException], address: HubAddress) -> str | None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not any(isinstance(error, OfflineModeIsEnabled) for error in chain):
        return None
    return (
        f"{address} has not been downloaded to this machine and HF_HUB_OFFLINE forbids to do it now: unset "
        "HF_HUB_OFFLINE, or download the repository elsewhere and give its folder."
    )


def _explain_answer(chain: list[BaseException], address: HubAddress, file_name: str, endpoint: str) -> str | None:
    """The hub was reached and declined."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = address.repo_id
    for error in chain:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HFValidationError):
            return f"'{repo}' cannot be the name of a hub repository: check the spelling of ORG/NAME."
        if isinstance(error, GatedRepoError):  # a RepositoryNotFoundError too, so it comes first
            return (
                f"{repo} is gated: accept its conditions on {endpoint}/{repo} and set HF_TOKEN to a token of the "
                "account that accepted them."
            )
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"There is no model repository {repo} on {endpoint}, or it is private: "
                "check the spelling, and set HF_TOKEN if it is private."
            )
        if isinstance(error, RevisionNotFoundError):
            return (
                f"{repo} has no revision '{address.revision}': take a branch, tag or commit listed on "
                f"{endpoint}/{repo}/commits/main."
            )
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return (
                f"{address} holds no {file_name}: give a repository laid out as nnssl publishes them, or download the "
                "right file and give its local path."
            )
        if isinstance(error, DisabledRepoError):
            return f"The hub has disabled {repo}: take another checkpoint."
        if status in (401, 403):
            return (
                f"The hub refused access to {repo} (HTTP {status}): set HF_TOKEN to a valid token of an account that "
                f"may read it, and accept its conditions on {endpoint}/{repo} if it has any."
            )
        if status == 429:
            return f"The hub limits the number of requests (HTTP 429) for {repo}: wait some minutes, or set HF_TOKEN."
        if isinstance(status, int) and status >= 500:
            return f"{endpoint} kept answering HTTP {status} for {file_name} of {repo}: try again later."
    return None


def _explain_disk(chain: list[BaseException], file_name: str) -> str | None:
    for error in chain:
        if not isinstance(error, OSError) or error.errno is None:
            continue
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"No space left to store {file_name}: free some, or set HF_HOME (hub cache) to another disk."
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            return (
                f"'{error.filename}' cannot be written to store {file_name}: set nnssl_pretrained_models or HF_HOME "
                "(hub cache) to a folder that can."
            )
    return None


def _explain_network(chain: list[BaseException], repo: str, endpoint: str) -> str | None:
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError

    for error in chain:
        if isinstance(error, OSError) and "Consistency check failed" in str(error):
            return f"The download of {repo} was cut off: run the command again."
        if isinstance(error, FileMetadataError):
            return f"{endpoint} does not answer as a Hugging Face hub does: check HF_ENDPOINT and the proxy settings."
        if type(error).__module__.split(".")[0] in _NETWORK_LIBRARIES:
            if type(error).__name__ in _BROKEN_OFF:
                return f"The download of {repo} was cut off: run the command again."
            return _unreachable(repo, endpoint)
    if any(isinstance(error, (LocalEntryNotFoundError, ConnectionError, TimeoutError)) for error in chain):
        return _unreachable(repo, endpoint)
    return None


def _unreachable(repo: str, endpoint: str) -> str:
    return (
        f"{endpoint} cannot be reached to fetch {repo}: check the connection (HTTPS_PROXY, HF_ENDPOINT), or download "
        "the repository elsewhere and give its folder."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
