//! The long help of `fp4 quantize`.

/// What is selected, what a recipe is, and what is written.
pub(super) const SELECTION: &str = "\
Which tensors are quantized:
  By default every linear weight: a tensor named `*.weight` of rank 2, or one of rank 3 with one
  matrix for each expert, of type F32, F16 or BF16, or F8_E4M3 with scales beside it, whose K is a
  multiple of the group (MXFP4 32, NVFP4 16) and of the transform block. But what careful tools keep
  stays as it is, by its role: embeddings (*embed*  *embd*  *wte*  *wpe*  shared), output heads
  (*lm_head* *classifier*  cls.*  output.weight  score.weight  head.weight), routers and gates of
  experts (*.gate  *.router  *.shared_expert_gate), multi-token-prediction blocks (mtp.*), position
  biases, vision and audio towers, adapters, poolers, input, output and modulation layers of
  diffusion models, linear attention (tools differ), attention of gpt-oss (dense in the released
  files). Every tensor of two or more dimensions that stays is listed with its reason and its bytes.
  --include GLOB replaces the choice by role, embeddings and heads included (several add up);
  --exclude GLOB removes from either.
  Globs match full tensor names: `*` any characters, `?` one, `[ab]`, `{this,that}`.
  An --include with wildcards filters: of what it matches, linear weights are quantized, and the
  rest (biases, norms, convolutions) is copied. So `--include '*'` is every linear weight, and
  `--include 'encoder.layer.0.*'` those of one layer. It is an error if it matches nothing that can
  be quantized.
  A candidate that cannot be quantized (its type, its K) is copied and listed with the reason; with
  --strict, or if --include gives it by its full name, without wildcards, it is an error.

Experts: a tensor NAME of rank 3 becomes one layer for each expert, `NAME.0`, `NAME.1` and so on,
  each with its own global scale. Whether its matrices are (out, in) or (in, out), as gpt-oss and
  Llama 4 have them, is told by the sizes in config.json, unless a matrix is square, and else by its
  model_type; where neither tells, --experts must. GPT-2's layers, stored (in, out), are transposed.
  config.json is read from a folder; for a file from NAME.config.json beside it, or else from the
  config.json of its folder.

Recipes: --recipe FILE gives formats by name, in TOML or JSON. The first rule that matches decides;
  what none matches is as the options say.
    tie = [\"qkv\", \"gate-up\"]        # may be left out, as all below but one of match and names
    experts = \"out-in\"
    [[rules]]
    match = \"*.self_attn.*\"         # a glob, or a list of them
    names = [\"lm_head.weight\"]      # full names
    format = \"mxfp4\"                # mxfp4, nvfp4 or dense
    transform = \"hadamard\"          # or none
    transform_block = 64
    scale_rule = \"search\"           # a name of --scale-rule
    global_scale = \"auto\"           # or a number
    activation_scale = 0.1          # or \"row\", as --activation-scale
    activations = \"mxint8\"          # fp4 or mxint8
  --write-recipe FILE writes such a recipe, naming every tensor: given back with the same input, it
  makes the same bytes.

What is written: `X.weight` becomes `X.e2m1` (U8), `X.scale_quant` (F8_E8M0 or F8_E4M3),
  `X.weight_global_scale`, `X.activation_global_scale`, `X.activation_scale_scale` (F32) and with a
  transform `X.transform` (F32; random and wush BF16), with --activations mxint8 or
  --activation-scale row
  `X.activation_encoding` (U8: 1 is MXINT8, 2 is NVFP4 with row scales, `fp4-rows` in reports). The
  scales of an FP8 weight that was quantized are left out.
  Everything else is copied byte for byte.
  A bias stays a separate tensor `X.bias`, as it was. A quantized layer applies it only if asked:
  load it with Bias::Apply (the layer adds the bias) or with Bias::Ignore (you do).

Scale rules, for the block scales of weights (activations have the contract's, nearest):
    search              MXFP4: of three exponents, NVFP4: of all scale bytes, that of the least
                        squared error. It finds the global scale of weights that are in the format
                        already, and leaves those as they are
    four-six-mse, -mae  NVFP4: the scale that takes the largest weight of a group to 6, or to 4, by
                        squared or mean error (arXiv 2512.02010); with -448 under the usual global
                        scale
    nearest             the contract's: MXFP4 with global scale 1/3
    floor, rceil, even  MXFP4: of the OCP specification; rounded up; up from a mantissa of 1.75
    modelopt, compressed-tensors, ggml, mlx
                        what these write: scales, ties and global scale

Scales: the automatic global scale of a weight is 1 in MXFP4; in NVFP4 its largest magnitude / 2688;
  the smallest positive f32 if that underflows; 1, with a warning, if all its values are zero or one
  is not finite. Some scale rules have another (above): ggml and mlx 1, nearest 1/3 in MXFP4. With
  --tie the largest magnitude is that of all weights that one product reads: q, k and v of a module,
  or gate and up.
  A stored global scale of NVFP4 activations, 0.1 or another, reaches to 2688 times itself and down
  to some 6e-3 of itself: what is above saturates, groups wholly below become zeros, and a layer
  warns of both. --activation-scale row gives each row its own instead, its largest magnitude /
  2688.
  A layer multiplies by weight global scale times activation global scale in f32, so that product
  must be finite and above 0: a weight for which it is not is an error that names it.

The report: one huge weight can take the global scale from all others, and the tensor's SQNR does
  not show it. So it counts groups that became all zero, and of these the lost ones, which held
  other weights; the shares of weights flushed to zero and saturated (beyond 7 steps of their
  group); and the SQNR by group: the smallest, the 5th percentile and the median, in steps of a
  quarter of a dB. A lost group has 0 dB.";
