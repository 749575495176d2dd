"""Errors of a method of the user's own as one line with the remedy."""

import jax

_REMEDIES = (
    (
        jax.errors.TracerBoolConversionError,
        "a Python `if`, `while`, `and`, `or` or `assert` on a value that is known only while the program runs; use jnp.where, "
        "jax.lax.cond or jax.lax.while_loop",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "an index by a mask that is known only while the program runs; use jnp.where(mask, x, 0), or weights of 0 and 1",
    ),
    (
        jax.errors.TracerArrayConversionError,
        "NumPy was given a value that is known only while the program runs; use jax.numpy",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        "a value that is known only while the program runs was used as a Python integer; sizes and positions of Python are fixed "
        "in the configuration, or use jax.lax.dynamic_slice and jnp.take",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "float(), int(), .item(), .tolist() or a size that depends on a value which is known only while the program runs; keep "
        "it an array (.astype), and give jnp.nonzero, jnp.unique and the like a size",
    ),
    (
        jax.errors.UnexpectedTracerError,
        "a value of one call was kept outside of it and used in another; return it instead",
    ),
)


def reason(error: BaseException) -> str:
    """Return an error as one line: its message, or what an error of JAX means and how to avoid it."""
    for kind, remedy in _REMEDIES:
        if isinstance(error, kind):
            return f"{remedy} ({type(error).__name__})"
    if isinstance(error, SystemExit):
        return "it ends the program (SystemExit); raise an error instead"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    line = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
    return line if len(line) <= 300 else line[:297] + "..."
