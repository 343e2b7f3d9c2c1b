"""Stand-ins for libraries that read videos and texts, for scripts that make up their batches.

Only of those that are not installed, so that such a script runs on a machine that has JAX and
little else. What they hold can be named and called, and means nothing.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from unittest import mock

NAMES = ('av', 'ftfy', 'grain', 'rich', 'tokenizers')


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith('__') and name != '__version__':
            raise AttributeError(name)
        return mock.MagicMock()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def allow() -> None:
    """From here on such an import succeeds; it is asked last, behind all that is installed."""
    sys.meta_path.append(_Finder())
