"""Products of float32 in float32, in the rows of JAX as in those of torch.

Left alone, a GPU rounds the factors of JAX's products to TF32, which has 10 bits, and of torch's
convolutions, but not of torch's other products; a TPU rounds them to bfloat16. CPUs round nothing.
"""

WORDS = 'float32: factors of products keep all their bits (no TF32)'


def of_jax():
    """For all that is traced from here on."""
    import jax

    if jax.default_backend() != 'cpu':
        jax.config.update('jax_default_matmul_precision', 'highest')


def of_torch(torch):
    """For all that runs from here on; torch: the module."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision('highest')
        torch.backends.cudnn.allow_tf32 = False
