"""Programs that compile in a third of the time and run slower, for tests; imports no jax."""

from importlib import metadata

# Of the CPU's compiler before jax 0.11, whose newer part takes half of what compiling takes;
# later ones do not know the flag, and a flag that is not known ends the process.
OLD = tuple(map(int, metadata.version('jaxlib').split('.')[:2])) < (0, 11)
XLA_FLAGS = '--xla_cpu_use_fusion_emitters=false' if OLD else ''


def xla_flags(devices):
    """XLA_FLAGS for so many fake devices."""
    return f'--xla_force_host_platform_device_count={devices} {XLA_FLAGS}'.strip()


def settings(cache):
    """Settings of JAX: compile without optimising, keep what is compiled in the folder `cache`."""
    return {
        'jax_disable_most_optimizations': True,
        'jax_compilation_cache_dir': str(cache),
        'jax_persistent_cache_min_compile_time_secs': 0.0,
        'jax_persistent_cache_min_entry_size_bytes': 0,
    }


def environment(cache):
    """The same for a process of one device."""
    found = {name.upper(): str(value) for name, value in settings(cache).items()}
    return {'XLA_FLAGS': XLA_FLAGS, **found}
