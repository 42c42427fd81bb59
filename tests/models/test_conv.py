"""Both forms of convolution agree with lax, in values and gradients, also in flax layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from fedjax_lite.models import conv, conv_general_dilated

matmul = functools.partial(conv_general_dilated, form="matmul")

# x shape, kernel shape, strides, padding, dilation, groups
CASES = [
    ((2, 7, 8, 3), (3, 3, 3, 4), 1, "SAME", 1, 1),
    ((2, 7, 8, 3), (3, 3, 3, 4), 1, "VALID", 1, 1),
    ((2, 9, 8, 3), (5, 3, 3, 4), (2, 3), "SAME", 1, 1),
    ((2, 9, 8, 3), (2, 4, 3, 5), 2, "SAME_LOWER", 1, 1),
    ((2, 9, 8, 3), (3, 2, 3, 5), (1, 2), "VALID", (2, 3), 1),
    ((2, 6, 6, 2), (3, 3, 2, 4), 2, [(1, 0), (2, 3)], 1, 1),
    ((2, 6, 6, 2), (3, 3, 2, 4), 1, [(-1, 1), (0, -2)], 1, 1),
    ((2, 6, 6, 4), (3, 3, 2, 6), 1, "SAME", 1, 2),
    ((2, 6, 6, 4), (3, 3, 1, 8), 2, 1, 2, 4),
    ((2, 6, 6, 4), (1, 1, 4, 3), 2, "SAME", 1, 1),
    ((2, 9, 3), (4, 3, 5), 2, "SAME", 1, 1),
    ((1, 4, 5, 6, 2), (2, 3, 2, 2, 3), 1, "SAME", 1, 1),
    ((2, 2, 2, 1), (2, 2, 1, 3), 3, "VALID", 1, 1),
    ((2, 2, 4, 1), (3, 3, 1, 3), 1, "VALID", 1, 1),
    # Enough channels and columns for the form that adds shifted columns.
    ((2, 7, 12, 16), (3, 3, 16, 4), 1, "SAME", 1, 1),
    ((2, 9, 16, 17), (5, 2, 17, 3), (2, 1), "VALID", 1, 1),
    ((2, 9, 16, 16), (2, 2, 16, 3), (1, 1), [(1, 0), (2, 0)], (3, 2), 1),
    ((1, 4, 5, 14, 16), (2, 3, 3, 16, 2), (1, 2, 1), "SAME", 1, 1),
]
ROWS = [case for case in CASES if case[0][-1] >= 16]


def numpy_arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def floats(*shapes):
    return [array.astype(np.float32) for array in numpy_arrays(*shapes)]


def lax_conv(x, kernel, strides, padding, dilation, groups):
    n = x.ndim - 2

    def each(v):
        return (v,) * n if isinstance(v, int) else tuple(v)

    letters = "DHW"[-n:]
    return lax.conv_general_dilated(
        x,
        kernel,
        each(strides),
        [(padding, padding)] * n if isinstance(padding, int) else padding,
        rhs_dilation=each(dilation),
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=groups,
    )


@pytest.mark.sample(9)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matmul_form_is_lax_in_float64_values_and_gradients(case):
    x_shape, kernel_shape, strides, padding, dilation, groups = case
    ours = functools.partial(
        conv, strides=strides, padding=padding, dilation=dilation, groups=groups, form="matmul"
    )

    def theirs(x, kernel):
        return lax_conv(x, kernel, strides, padding, dilation, groups)

    @jax.jit
    def both(x, kernel, cotangent):
        results = []
        for function in (ours, theirs):
            out, pull = jax.vjp(function, x, kernel)
            results.append((out, *pull(cotangent)))
        return results

    with jax.enable_x64(True):
        x, kernel = numpy_arrays(x_shape, kernel_shape)
        shape = jax.eval_shape(theirs, x, kernel).shape
        got, expected = both(x, kernel, numpy_arrays(shape, seed=1)[0])
        assert got[0].shape == expected[0].shape
        assert got[0].dtype == jnp.float64
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_wide_inputs_take_patches_of_all_axes_but_the_last(case):
    """The patches, the largest array of a convolution, are smaller by the kernel's width."""
    x_shape, kernel_shape, strides, padding, dilation, groups = case
    x, kernel = (jax.ShapeDtypeStruct(shape, "float32") for shape in (x_shape, kernel_shape))
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    jaxpr = jax.make_jaxpr(functools.partial(conv, form="matmul", **options))(x, kernel)
    dots = [str(eqn) for eqn in jaxpr.jaxpr.eqns if "dot_general" in str(eqn)]
    assert len(dots) == 1
    *window, width, cin, cout = kernel_shape
    rows, columns = int(np.prod(window)) * cin, width * cout
    assert f"{rows},{columns}]" in str(jaxpr)


@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_over_kernels_is_a_loop_over_lax(groups):
    x, kernels = numpy_arrays((3, 2, 6, 6, 4), (3, 3, 3, 4 // groups, 4))
    x, kernels = x.astype(np.float32), kernels.astype(np.float32)

    def grads(one_conv):
        def energy(kernel, x):
            return jnp.sum(jnp.sin(one_conv(x, kernel)))

        return jax.grad(energy, argnums=(0, 1))

    matmul_conv = functools.partial(conv, groups=groups, form="matmul")
    ours = jax.jit(jax.vmap(grads(matmul_conv)))(kernels, x)
    alone = jax.jit(grads(lambda x, k: lax_conv(x, k, 1, "SAME", 1, groups)))
    for i in range(3):
        expected = alone(kernels[i], x[i])
        for got, want in zip(ours, expected):
            np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-4)


def test_strides_dilations_and_layouts_of_lax():
    x, kernel = floats((2, 3, 6, 7), (4, 3, 2, 3))
    kwargs = dict(window_strides=(2, 1), padding=[(1, 2), (0, 1)], lhs_dilation=(2, 3))

    @jax.jit
    def both(x, kernel):
        return [form(x, kernel, **kwargs) for form in (matmul, lax.conv_general_dilated)]

    np.testing.assert_allclose(*both(x, kernel), atol=1e-4)  # NCHW and OIHW, the default of lax
    kwargs["dimension_numbers"] = ("CHWN", "IOHW", "HNWC")
    np.testing.assert_allclose(
        *both(x.transpose(1, 2, 3, 0), kernel.transpose(1, 0, 2, 3)), atol=1e-4
    )


def test_batch_groups_fall_back_to_xla():
    x, kernel = floats((2, 3, 6, 6), (4, 3, 3, 3))
    got = matmul(x, kernel, (1, 1), "SAME", batch_group_count=2)
    expected = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", batch_group_count=2)
    np.testing.assert_array_equal(got, expected)


def test_preferred_element_type():
    x, kernel = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 1), jnp.bfloat16)
    numbers = ("NHWC", "HWIO", "NHWC")
    out = matmul(
        x, kernel, (1, 1), "VALID", dimension_numbers=numbers, preferred_element_type=jnp.float32
    )
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 18.0)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "padding": "VALID"},
        {"padding": "CIRCULAR", "kernel_dilation": 2},
        {"feature_group_count": 2, "padding": 1},
        {"input_dilation": 2, "padding": [(1, 1), (2, 0)]},
    ],
    ids=str,
)
def test_in_flax_layers(options):
    @jax.jit
    def outputs(x):
        plain = linen.Conv(6, (3, 3), **options)
        ours = linen.Conv(6, (3, 3), conv_general_dilated=matmul, **options)
        params = plain.init(jax.random.key(0), x)
        nnx_plain = nnx.Conv(4, 6, (3, 3), rngs=nnx.Rngs(0), **options)
        nnx_ours = nnx.Conv(4, 6, (3, 3), conv_general_dilated=matmul, rngs=nnx.Rngs(0), **options)
        return ours.apply(params, x), plain.apply(params, x), nnx_ours(x), nnx_plain(x)

    linen_ours, linen_plain, nnx_ours, nnx_plain = outputs(*floats((2, 8, 7, 4)))
    np.testing.assert_allclose(linen_ours, linen_plain, atol=1e-5)
    np.testing.assert_allclose(nnx_ours, nnx_plain, atol=1e-5)


def compiled_gradient(form):
    def gradient(kernel, x):
        return jax.grad(lambda k: jnp.sum(conv(jnp.tanh(conv(x, k, form=form)), k, form=form)))(
            kernel
        )

    shapes = (
        jax.ShapeDtypeStruct((4, 3, 3, 2, 2), "float32"),
        jax.ShapeDtypeStruct((4, 5, 6, 6, 2), "float32"),
    )
    return jax.jit(jax.vmap(gradient)).lower(*shapes).compile().as_text()


def test_compiled_vmapped_gradient_has_no_convolution():
    assert "convolution(" not in compiled_gradient("matmul")
    # The control: the same search finds the XLA form's convolutions.
    assert "convolution(" in compiled_gradient("xla") or "__onednn$conv" in compiled_gradient("xla")


def test_auto_is_matmul_on_cpu():
    text = str(jax.make_jaxpr(conv)(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))))
    assert ("conv_general_dilated" in text) == (jax.default_backend() != "cpu")
    forced = jax.make_jaxpr(functools.partial(conv, form="xla"))
    assert "conv_general_dilated" in str(forced(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"form": "gemm"}, "form"),
        ({"padding": "FULL"}, "padding"),
        ({"padding": [(1, 1)]}, "padding"),
        ({"strides": 0}, "strides"),
        ({"dilation": (1, 1, 1)}, "dilation"),
        ({"groups": 2}, "groups"),
    ],
    ids=str,
)
def test_errors(kwargs, match):
    with pytest.raises(ValueError, match=match):
        conv(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 2)), **{"form": "matmul"} | kwargs)


def test_channel_first_images_are_an_error():
    with pytest.raises(ValueError, match="channel-last"):
        conv(jnp.ones((2, 3, 32, 32)), jnp.ones((3, 3, 3, 2)), form="matmul")
