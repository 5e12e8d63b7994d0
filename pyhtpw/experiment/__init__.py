"""Results: from a declaration that is committed first to JSON files, and from these to tables and figures.

`pyhtpw.experiment.plan` reads the declaration, `pyhtpw.experiment.runner` makes one run of it (train, pack, tune, freeze, test
once), `pyhtpw.experiment.schedule` makes all of them in order, and `pyhtpw.experiment.tables` builds what is published.
"""
