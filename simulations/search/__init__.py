"""Search over a study's fields and cross-validation by patient: many trainings, judged on validation patients only.

A *trial* is a derived study, a *fit* one federated training of it: on the study's own validation split, or one fold
of a cross-validation (``data.fold``). Fits run in worker processes over one set of vaults, which hold no test patient.
"""
