"""Character models: stacked LSTMs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.checks.made import made
from fedjax_lite.models.functions import from_functions
from fedjax_lite.models.layers import dense, init_affine
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params


@made
def char_lstm(
    vocab_size: int = 90,
    *,
    embedding_size: int = 8,
    hidden_size: int = 256,
    num_layers: int = 2,
) -> Model:
    """Predicts the next character; the default is McMahan's Shakespeare model.

    Examples are ``{"x": int [B, T], "y": int [B, T]}``, `y` being `x` one step later and -1 where
    nothing is to be predicted; an example's loss is the mean over its valid tokens. The network is
    causal, so padding at the end of `x` changes nothing before it. With vocabulary `V`, embedding
    `E` and hidden size `H` it has ``V E + 4H (E + H + 1) + 4H (2H + 1) (layers - 1) + V (H + 1)``
    parameters: 820,522 at V = 90.

    Args:
      vocab_size: number of symbols `V`. Symbols outside ``[0, V)`` read as zeros, so -1 may pad.
      embedding_size: `E`.
      hidden_size: `H`.
      num_layers: stacked LSTMs.

    Returns:
      A `Model`; predict gives `[B, T, V]`. Parameters "embedding", "lstm1", ... and "head".

    Raises:
      ValueError: if a size is not positive.

    Example:
      >>> shapes = jax.eval_shape(char_lstm().init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      820522

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
      Decentralized Data", 2017, arXiv:1602.05629.
    """
    sizes = (vocab_size, embedding_size, hidden_size, num_layers)
    if any(not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(
            "vocab_size, embedding_size, hidden_size and num_layers must be positive ints, "
            f"got {sizes}; give ints above 0"
        )

    def init(key: Key) -> Params:
        keys = jax.random.split(key, num_layers + 2)
        embed = jax.random.uniform(keys[0], (vocab_size, embedding_size), minval=-0.05, maxval=0.05)
        params = {
            "embedding": embed,
            "head": init_affine(keys[1], (hidden_size, vocab_size), init="glorot"),
        }
        for i in range(num_layers):
            fan_in = embedding_size if i == 0 else hidden_size
            params[f"lstm{i + 1}"] = init_lstm(keys[i + 2], fan_in, hidden_size)
        return params

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        del key
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"x must be integer symbols [B, T], got {x.dtype} {x.shape}")
        # A product instead of a gather: its gradient is a product, not a scatter.
        hidden = jax.nn.one_hot(x, vocab_size, dtype=params["embedding"].dtype)
        hidden = hidden @ params["embedding"]
        for i in range(num_layers):
            hidden = lstm(params[f"lstm{i + 1}"], hidden)
        return dense(params["head"], hidden)

    return from_functions(init, apply, raw_inputs=True)


def init_lstm(key: Key, input_size: int, hidden_size: int) -> Params:
    """Glorot input kernel `[E, 4H]`, orthogonal recurrent kernel `[H, 4H]`, forget bias 1."""
    key_input, key_recurrent = jax.random.split(key)
    shape = (hidden_size, 4 * hidden_size)
    bias = jnp.zeros(4 * hidden_size).at[hidden_size : 2 * hidden_size].set(1.0)
    return {
        "input": jax.nn.initializers.glorot_uniform()(key_input, (input_size, shape[1])),
        "recurrent": jax.nn.initializers.orthogonal()(key_recurrent, shape),
        "bias": bias,
    }


def lstm(params: Params, x: Array) -> Array:
    """Runs one LSTM over time from a zero state.

    ``i, f, g, o = split(x_t W + h U + b);  c = sig(f) c + sig(i) tanh(g);  h = sig(o) tanh(c)``.

    Args:
      params: ``{"input": [E, 4H], "recurrent": [H, 4H], "bias": [4H]}``, gates in the order above.
      x: `[B, T, E]`.

    Returns:
      `[B, T, H]`, all hidden states.

    Example:
      >>> lstm(init_lstm(jax.random.key(0), 3, 5), jnp.zeros((2, 7, 3))).shape
      (2, 7, 5)

    Reference: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; forget gates: Gers,
      Schmidhuber, Cummins, "Learning to Forget", 2000.
    """
    # All inputs in one product; only the recurrent product is left to the loop over time.
    projected = jnp.swapaxes(x @ params["input"] + params["bias"], 0, 1)

    def step(carry: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
        hidden, cell = carry
        i, f, g, o = jnp.split(inputs + hidden @ params["recurrent"], 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    # Zeros made from the inputs: of their dtype, and varying over the same mesh axes.
    zeros = jnp.zeros_like(projected[0, :, : params["recurrent"].shape[0]])
    _, states = jax.lax.scan(step, (zeros, zeros), projected)
    return jnp.swapaxes(states, 0, 1)
