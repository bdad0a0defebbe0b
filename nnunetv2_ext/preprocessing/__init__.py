"""Preprocessing: a plan's cases, written so that a run can be interrupted and continued."""
