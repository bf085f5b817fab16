"""Imported by every Python of a session that a test launches: has the worker module altered.

`ALTERED` names a function, `module.function`, which is called once the worker is imported.
"""

import importlib
import importlib.abc
import importlib.util
import os
import sys


class _AlterWorker(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "academic_pretraining.benchmarking.worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_alter(module):
            execute(module)
            name, function = os.environ["ALTERED"].split(".")
            getattr(importlib.import_module(name), function)(module)

        spec.loader.exec_module = execute_and_alter
        return spec


if "ALTERED" in os.environ:
    sys.meta_path.insert(0, _AlterWorker())
