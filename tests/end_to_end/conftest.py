"""Two channels, two labels, 4 mm slices: a user's folders to bring other people's models to. And what a refusal is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Model, Workplace, copy_of
from tests.end_to_end.refusal import Refuses, contents
from tests.end_to_end.scans import larger_scans, preprocess_scans
from tests.end_to_end.training_runs import RECIPE, Run


@pytest.fixture(scope="session")
def target(anisotropic_workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The anisotropic dataset, shared by the tests that leave plans and models in it."""
    return copy_of(anisotropic_workplace, tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="session")
def scans(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Twelve larger scans, preprocessed by a run that nothing has interrupted."""
    place = larger_scans(workplace, tmp_path_factory.mktemp("scans"))
    preprocess_scans(place)
    return place


def enter(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process's nnU-Net variables to a user's folders."""
    for name, value in place.env.items():
        if name.startswith(("nnUNet_", "XDG")):
            monkeypatch.setenv(name, value)


@pytest.fixture
def output_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command's main prints in a user's folders; for what needs no process of its own."""

    def call(place: Workplace, main: Callable[[list[str]], None], *arguments: object) -> str:
        enter(place, monkeypatch)
        capsys.readouterr()
        main([str(a) for a in arguments])
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuses:
    """Calls a command's main and checks exit code 1, a single line on stderr, and that no file of `place` changed."""
    enter(place, monkeypatch)

    def call(main: Callable[[list[str]], None], arguments: list[object], *expected: str) -> str:
        before = contents(place)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(a) for a in arguments])
        message = capsys.readouterr().err
        assert exit_info.value.code == 1
        assert message.count("\n") == 1, message
        assert "Traceback" not in message
        for text in expected:
            assert text in message, message
        assert contents(place) == before, "something was written"
        return message

    return call


@pytest.fixture(scope="session")
def undisturbed(planned_resenc: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained and validated by one command; nothing changes it."""
    run = Run(planned_resenc, tmp_path_factory.mktemp("undisturbed"))
    result = run.run(*RECIPE)
    assert result.returncode == 0, result.stderr
    return run
