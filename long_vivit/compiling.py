"""How programs are compiled, and where they are kept for the next start."""

import contextlib
import hashlib
import platform
import re
from pathlib import Path

import jax

from long_vivit.perf import give_back_freed_memory

# Drawing the parameters runs once: compiling it well takes longer than running it badly.
HASTY = {'xla_backend_optimization_level': 0}


def compiler_options():
    """For the step on CPU: at LLVM's first level it is as fast and ready some seconds earlier."""
    if jax.default_backend() != 'cpu' or jax.config.values['jax_disable_most_optimizations']:
        return None
    return {'xla_backend_optimization_level': 1}


class Ahead:
    """A jitted function that is compiled in a go of its own for arguments of new shapes.

    What the compiler has freed is given back before the program runs, whose own memory would
    otherwise lie on top of it.
    """

    def __init__(self, function):
        self.function, self.known = function, set()

    def prepare(self, *arguments):
        """Compiles for arguments such as these, which may be ShapeDtypeStruct with shardings."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments))
        if shapes not in self.known:
            self.function.lower(*arguments).compile()
            give_back_freed_memory()
            self.known.add(shapes)

    def __call__(self, *arguments):
        self.prepare(*arguments)
        return self.function(*arguments)


def keep_compiled(setting, workdir):
    """Lets JAX keep compiled programs in a folder, so that the next start need not compile.

    Args:
      setting: the field compile_cache: 'off', 'auto' (.compiled beside `workdir`) or a path.

    Returns:
      a line to print, or '' where it is off, and for 'auto' where JAX was told of a folder already
      (JAX_COMPILATION_CACHE_DIR): that one stays.
    """
    if setting == 'off':
        jax.config.update('jax_enable_compilation_cache', False)
        return ''
    if setting == 'auto' and jax.config.jax_compilation_cache_dir:
        return ''
    folder = Path(workdir).absolute().parent / '.compiled' if setting == 'auto' else Path(setting)
    if jax.default_backend() == 'cpu':
        folder = folder / f'cpu-{processor()}'
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    return f'compiled programs are kept in {folder} (compile_cache)'


def processor():
    """Eight characters that differ where this machine's processor has other instructions.

    A program compiled for one processor must not be loaded on a lesser one, as may happen where
    the folder is shared: JAX's key of a program does not tell them apart.
    """
    found = platform.machine()
    with contextlib.suppress(OSError):  # Linux only
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        found += next((line for line in lines if re.match('flags|Features', line)), '')
    return hashlib.sha256(found.encode()).hexdigest()[:8]
