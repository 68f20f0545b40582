"""Evaluation: problems with known answers, how a response is checked, and how sure the resulting figures are."""
