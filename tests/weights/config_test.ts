import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { readModelConfig, type RopeScaling } from "../../lib/weights/config.ts";
import { WeightsError } from "../../lib/weights/safetensors.ts";
import { tinyLlama, withFolder } from "./fixture.ts";

const base = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: 1000,
  hidden_size: 512,
  intermediate_size: 1024,
  num_hidden_layers: 2,
  num_attention_heads: 8,
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-6,
};

/** The configuration that `config.json` with these fields over `base` gives. */
async function configOf(
  fields: Record<string, unknown>,
  generation?: unknown,
): Promise<ReturnType<typeof readModelConfig>> {
  let config: ReturnType<typeof readModelConfig> | undefined;
  await withFolder((folder) => {
    writeFileSync(join(folder, "config.json"), JSON.stringify({ ...base, ...fields }));
    if (generation !== undefined) writeFileSync(join(folder, "generation_config.json"), JSON.stringify(generation));
    config = readModelConfig(folder);
  });
  return config!;
}

test("config: the embedded model", () => {
  assertEquals(readModelConfig(tinyLlama), {
    architecture: "LlamaForCausalLM",
    vocabularySize: 6144,
    hiddenSize: 256,
    intermediateSize: 640,
    layers: 8,
    heads: 8,
    kvHeads: 2,
    headDim: 64,
    contextLength: 2048,
    rmsNormEps: 1e-5,
    ropeTheta: 10000,
    ropeScaling: null,
    tieWordEmbeddings: true,
    attentionBias: false,
    mlpBias: false,
    bosId: 0,
    eosIds: [1],
  });
});

test("config: what is left out has the defaults of transformers", async () => {
  const config = await configOf({ num_key_value_heads: null, rope_scaling: null });
  assertEquals(
    [config.kvHeads, config.headDim, config.ropeTheta, config.ropeScaling, config.tieWordEmbeddings, config.bosId],
    [8, 64, 10000, null, false, null],
  );
  assertEquals(config.eosIds, []);
});

test("config: ends of text come from both files, once each", async () => {
  assertEquals((await configOf({ eos_token_id: 5 }, { eos_token_id: [7, 5, 9] })).eosIds, [5, 7, 9]);
  assertEquals((await configOf({ eos_token_id: [3, 4] }, {})).eosIds, [3, 4]);
});

test("config: rope of transformers 4 and 5", async () => {
  const llama3 = {
    rope_type: "llama3",
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 8192,
  };
  const expected = {
    type: "llama3",
    factor: 8,
    lowFrequencyFactor: 1,
    highFrequencyFactor: 4,
    originalContextLength: 8192,
  };
  const four = await configOf({ rope_theta: 500000, rope_scaling: llama3 });
  assertEquals([four.ropeTheta, four.ropeScaling], [500000, expected]);
  const five = await configOf({ rope_parameters: { ...llama3, rope_theta: 500000 } });
  assertEquals([five.ropeTheta, five.ropeScaling], [500000, expected]);
  const plain = await configOf({ rope_parameters: { rope_type: "default", rope_theta: 1e6 } });
  assertEquals([plain.ropeTheta, plain.ropeScaling], [1e6, null]);
  assertEquals((await configOf({ rope_scaling: { type: "linear", factor: 2 } })).ropeScaling, {
    type: "linear",
    factor: 2,
  });
});

const qwen2 = { architectures: ["Qwen2ForCausalLM"], model_type: "qwen2", num_key_value_heads: 2 };

test("config: biases follow from the architecture, and for Llama from the file", async () => {
  const biases = async (fields: Record<string, unknown>) => {
    const { architecture, attentionBias, mlpBias } = await configOf(fields);
    return [architecture, attentionBias, mlpBias];
  };
  assertEquals(await biases({ attention_bias: true }), ["LlamaForCausalLM", true, false]);
  assertEquals(await biases({ mlp_bias: true }), ["LlamaForCausalLM", false, true]);
  // As Qwen2.5 has it: a window that is not used.
  const unused = { ...qwen2, sliding_window: 131072, use_sliding_window: false, max_window_layers: 28 };
  assertEquals(await biases(unused), ["Qwen2ForCausalLM", true, false]);
});

const phi3 = { architectures: ["Phi3ForCausalLM"], model_type: "phi3" };
const mistral = { architectures: ["MistralForCausalLM"], model_type: "mistral", num_key_value_heads: 2 };
const mixtral = {
  architectures: ["MixtralForCausalLM"],
  model_type: "mixtral",
  num_key_value_heads: 2,
  num_local_experts: 4,
  num_experts_per_tok: 2,
};
const smollm3 = { architectures: ["SmolLM3ForCausalLM"], model_type: "smollm3", num_key_value_heads: 2 };

const gemma = { num_key_value_heads: 2, hidden_act: undefined, hidden_activation: "gelu_pytorch_tanh" };
const gemma2 = { ...gemma, architectures: ["Gemma2ForCausalLM"], model_type: "gemma2" };
const gemma3 = { ...gemma, architectures: ["Gemma3ForCausalLM"], model_type: "gemma3_text" };
const gptOss = {
  architectures: ["GptOssForCausalLM"],
  model_type: "gpt_oss",
  num_key_value_heads: 2,
  num_local_experts: 4,
  num_experts_per_tok: 2,
  rope_scaling: { rope_type: "yarn", factor: 32 },
};

test("config: YaRN's and LongRoPE's defaults are those of transformers", async () => {
  const yarn = async (fields: Record<string, unknown>) =>
    (await configOf({ rope_scaling: { rope_type: "yarn", factor: 4, ...fields } })).ropeScaling;
  const plain: RopeScaling = {
    type: "yarn",
    factor: 4,
    originalContextLength: 4096,
    betaFast: 32,
    betaSlow: 1,
    truncate: true,
    attentionFactor: 0.1 * Math.log(4) + 1,
  };
  assertEquals(await yarn({}), plain);
  assertEquals(
    await yarn({ attention_factor: 2, beta_fast: 16, truncate: false, original_max_position_embeddings: 64 }),
    {
      ...plain,
      originalContextLength: 64,
      betaFast: 16,
      truncate: false,
      attentionFactor: 2,
    },
  );
  const scaled = (part: number) => 0.1 * part * Math.log(4) + 1;
  assertEquals(await yarn({ mscale: 2, mscale_all_dim: 0.5 }), { ...plain, attentionFactor: scaled(2) / scaled(0.5) });
  assertEquals(await yarn({ mscale: 2, mscale_all_dim: 0 }), plain);
  const factors = Array<number>(24).fill(2);
  const { rotaryDim, ropeScaling } = await configOf({
    ...phi3,
    partial_rotary_factor: 0.75,
    original_max_position_embeddings: 1024,
    rope_scaling: { type: "su", short_factor: factors, long_factor: factors },
  });
  assertEquals(rotaryDim, 48);
  assertEquals(ropeScaling, {
    type: "longrope",
    shortFactors: factors,
    longFactors: factors,
    originalContextLength: 1024,
    attentionFactor: Math.sqrt(1 + Math.log(4) / Math.log(1024)),
  });
});

test("config: what an architecture's own file has", async () => {
  const glm4 = { architectures: ["Glm4ForCausalLM"], model_type: "glm4", num_key_value_heads: 2 };
  const { headDim, rotaryDim, attentionBias } = await configOf(glm4);
  assertEquals([headDim, rotaryDim, attentionBias], [128, 64, true]);
  // A window as long as the context is none.
  assertEquals((await configOf({ ...mistral, sliding_window: 4096 })).architecture, "MistralForCausalLM");
  assertEquals((await configOf({ ...mixtral, sliding_window: undefined })).experts, {
    count: 4,
    top: 2,
    intermediateSize: 1024,
    normalized: true,
    denseLayers: [],
  });
  assertEquals((await configOf({ ...smollm3, num_hidden_layers: 9 })).unrotatedLayers, [3, 7]);
  assertEquals((await configOf(smollm3)).tieWordEmbeddings, true);
  const moe = {
    architectures: ["Qwen3MoeForCausalLM"],
    model_type: "qwen3_moe",
    num_key_value_heads: 2,
    num_experts: 16,
    num_experts_per_tok: 4,
    moe_intermediate_size: 96,
    decoder_sparse_step: 2,
    num_hidden_layers: 6,
    mlp_only_layers: [1],
  };
  assertEquals((await configOf(moe)).experts, {
    count: 16,
    top: 4,
    intermediateSize: 96,
    normalized: false,
    denseLayers: [0, 1, 2, 4],
  });
});

test("config: windows, a layer at a time", async () => {
  const windowsOf = async (fields: Record<string, unknown>) => (await configOf(fields)).windows;
  const four = { num_hidden_layers: 4 }, types = ["full_attention", "sliding_attention"];
  assertEquals(await windowsOf({ ...mistral, sliding_window: 64 }), [64, 64]);
  assertEquals(await windowsOf({ ...mistral, sliding_window: null }), undefined);
  assertEquals(await windowsOf({ ...mistral, max_position_embeddings: 8192 }), [4096, 4096]);
  assertEquals(
    await windowsOf({ ...qwen2, ...four, use_sliding_window: true, sliding_window: 64, max_window_layers: 3 }),
    [
      0,
      0,
      0,
      64,
    ],
  );
  assertEquals(await windowsOf({ ...qwen2, use_sliding_window: true, sliding_window: 64 }), undefined);
  assertEquals(await windowsOf({ ...smollm3, ...four, use_sliding_window: true, sliding_window: 64 }), [0, 0, 0, 64]);
  assertEquals(await windowsOf({ ...gemma2, ...four, sliding_window: 64 }), [64, 0, 64, 0]);
  assertEquals(await windowsOf({ ...gemma2, sliding_window: 64, layer_types: types }), [0, 64]);
  // A window as long as the context is none, but for layers that rotate in a way of their own.
  assertEquals(await windowsOf(gemma2), undefined);
  assertEquals(await windowsOf({ ...gemma3, ...four, sliding_window_pattern: 2 }), [4096, 0, 4096, 0]);
  assertEquals(await windowsOf({ ...gemma3, num_hidden_layers: 7, sliding_window: 5 }), [5, 5, 5, 5, 5, 0, 5]);
  assertEquals(await windowsOf({ ...gptOss, ...four }), [128, 0, 128, 0]);
});

test("config: what Gemma says beside its sizes", async () => {
  const two = await configOf(gemma2),
    three = await configOf({ ...gemma3, rope_scaling: { rope_type: "linear", factor: 8 } });
  assertEquals(two.softCaps, { attention: 50, logits: 30 });
  assertEquals((await configOf({ ...gemma2, attn_logit_softcapping: null })).softCaps, { attention: 0, logits: 30 });
  assertEquals(two.multipliers, { embedding: Math.sqrt(512), attention: 1 / 16, residual: 1, logits: 1 });
  assertEquals([two.headDim, two.tieWordEmbeddings, three.ropeTheta], [256, true, 1e6]);
  assertEquals([three.ropeScaling, three.windowRope], [{ type: "linear", factor: 8 }, {
    ropeTheta: 1e4,
    ropeScaling: null,
  }]);
});

const refused: [name: string, fields: Record<string, unknown>, ...parts: string[]][] = [
  ["an unknown architecture", { architectures: ["QwenForCausalLM"] }, "QwenForCausalLM", "supported: LlamaForCausalLM"],
  ["no architecture", { architectures: undefined }, "architectures: expected a list", "found nothing"],
  ["another model type", { model_type: "mistral" }, "model_type", '"mistral"'],
  ["another activation", { hidden_act: "gelu" }, "hidden_act", '"silu"', '"gelu"'],
  ["head_dim 32", { head_dim: 32 }, "head_dim 32", "64, 80, 96, 112, 128, 192, 256"],
  ["head_dim 160 from the sizes", { hidden_size: 1280 }, "head_dim 160", "64, 80, 96, 112, 128, 192, 256"],
  ["text for a number", { hidden_size: "512" }, "hidden_size", "whole number", '"512"'],
  ["a fraction", { num_hidden_layers: 1.5 }, "num_hidden_layers", "1.5"],
  ["zero layers", { num_hidden_layers: 0 }, "num_hidden_layers", "found 0"],
  ["a missing size", { vocab_size: undefined }, "vocab_size", "found nothing"],
  ["a negative epsilon", { rms_norm_eps: -1 }, "rms_norm_eps", "-1"],
  ["text for a flag", { tie_word_embeddings: "yes" }, "tie_word_embeddings", "true or false"],
  ["heads that do not divide", { num_key_value_heads: 3 }, "8 query heads over 3"],
  ["an id that is text", { eos_token_id: "</s>" }, "eos_token_id", "</s>"],
  ["a list with a negative id", { eos_token_id: [1, -2] }, "eos_token_id"],
  ["rope scaling that is text", { rope_scaling: "llama3" }, "rope_scaling", "an object"],
  ["unknown rope scaling", { rope_scaling: { rope_type: "mrope" } }, "rope_scaling.rope_type", "yarn", '"mrope"'],
  ["dynamic rope scaling", { rope_scaling: { type: "dynamic", factor: 2 } }, "rope_scaling.type", "cannot follow"],
  [
    "longrope without all its factors",
    { ...phi3, rope_scaling: { type: "longrope", short_factor: [1], long_factor: [1] } },
    "rope_scaling.short_factor: expected a list of 32 numbers > 0",
  ],
  ["a rotated part of an odd size", { ...phi3, partial_rotary_factor: 0.33 }, "partial_rotary_factor", "0.33"],
  ["a window of 0", { ...mistral, sliding_window: 0 }, "sliding_window: expected a whole number >= 1, found 0"],
  ["a window of 0 that is not used", { ...qwen2, sliding_window: 0 }, "sliding_window", "found 0"],
  ["a window of a half", { ...gemma3, sliding_window: 0.5 }, "sliding_window: expected a whole number >= 1, found 0.5"],
  ["no window where layers have one", { ...gemma2, sliding_window: null }, "sliding_window", "as layers have one"],
  [
    "no window where one is used",
    { ...qwen2, use_sliding_window: true, sliding_window: null },
    "sliding_window: expected a whole number >= 1, as use_sliding_window is true, found nothing",
  ],
  [
    "a listed layer with a window that is not used",
    { ...qwen2, layer_types: ["full_attention", "sliding_attention"] },
    "use_sliding_window: expected true",
  ],
  [
    "no window of a listed layer",
    { ...mistral, sliding_window: null, layer_types: ["sliding_attention", "sliding_attention"] },
    "sliding_window: expected a whole number >= 1, as layer_types has layers with one",
  ],
  [
    "a layer that sees all where all have a window",
    { ...mistral, sliding_window: 64, layer_types: ["full_attention", "sliding_attention"] },
    'layer_types: expected "sliding_attention" alone, as sliding_window is 64',
  ],
  [
    "a window where the architecture has none",
    { layer_types: ["full_attention", "sliding_attention"] },
    'layer_types: expected "full_attention" alone',
  ],
  [
    "an unknown type of layer",
    { ...gemma2, layer_types: ["full_attention", "chunked_attention"] },
    "chunked_attention",
  ],
  ["too many types of layers", { ...gemma2, layer_types: Array(3).fill("full_attention") }, "each of 2 layers"],
  ["types of layers that are one", { ...gemma3, layer_types: "full_attention" }, "layer_types: expected a list"],
  ["a pattern of 0", { ...gemma3, sliding_window_pattern: 0 }, "sliding_window_pattern", "found 0"],
  ["a cap of 0", { ...gemma2, attn_logit_softcapping: 0 }, "attn_logit_softcapping: expected a number > 0, found 0"],
  ["a negative cap", { ...gemma2, final_logit_softcapping: -30 }, "final_logit_softcapping", "found -30"],
  ["a scalar of 0", { ...gemma3, query_pre_attn_scalar: 0 }, "query_pre_attn_scalar", "found 0"],
  ["another activation of Gemma", { ...gemma2, hidden_activation: "relu" }, "hidden_activation", '"relu"'],
  ["attention both ways", { ...gemma3, use_bidirectional_attention: true }, "use_bidirectional_attention", "false"],
  ["another limit of gates", { ...gptOss, swiglu_limit: 5 }, "swiglu_limit: expected 7, found 5"],
  ["no word of rotation", { ...gptOss, rope_scaling: undefined }, "rope_scaling: expected an object, found nothing"],
  ["a local base of 0", { ...gemma3, rope_local_base_freq: 0 }, "rope_local_base_freq", "found 0"],
  [
    "an unknown local rotation",
    { ...gemma3, rope_parameters: { sliding_attention: { rope_type: "spiral" } } },
    'rope_parameters.sliding_attention.rope_type: expected one of default, linear, llama3, yarn, longrope, found "spiral"',
  ],
  ["a part of a channel a head", { num_attention_heads: 7 }, "num_attention_heads", "found 7"],
  ["an odd head_dim", { head_dim: 63 }, "head_dim 63", "64, 80"],
  ["more experts a token than there are", { ...mixtral, num_experts_per_tok: 5 }, "num_experts_per_tok", "found 5"],
  ["no experts", { ...mixtral, num_local_experts: 0 }, "num_local_experts", "found 0"],
  ["layer types for other layers", { ...qwen2, layer_types: ["full_attention"] }, "layer_types", "each of 2 layers"],
  ["too few layers that say whether they turn", { ...smollm3, no_rope_layers: [1] }, "no_rope_layers", "2 layers"],
  ["multi-head latent attention", { architectures: ["DeepseekV3ForCausalLM"] }, "DeepseekV3", "latents"],
  ["linear attention", { architectures: ["Qwen3NextForCausalLM"] }, "Qwen3NextForCausalLM", "linear attention"],
  ["linear attention of Qwen3.5", { architectures: ["Qwen3_5ForConditionalGeneration"] }, "linear attention"],
  ["Gemma 4", { architectures: ["Gemma4ForConditionalGeneration"] }, "Gemma 4"],
  ["an encoder", { architectures: ["BertForMaskedLM"] }, "BertForMaskedLM", "encoder"],
  ["a model of images", { architectures: ["Mistral3ForConditionalGeneration"] }, "take the text model alone"],
  ["rope scaling without factor", { rope_scaling: { rope_type: "linear" } }, "rope_scaling.factor"],
  ["partial rope", { partial_rotary_factor: 0.5 }, "partial_rotary_factor"],
  ["Qwen 2 under another model type", { ...qwen2, model_type: "llama" }, "model_type", '"qwen2"'],
  ["Qwen 2 with a windowed layer", { ...qwen2, layer_types: ["sliding_attention"] }, "layer_types", "full_attention"],
  ["Qwen 2 without its key/value heads", { ...qwen2, num_key_value_heads: undefined }, "num_key_value_heads"],
  ["quantized weights", { quantization_config: { quant_method: "gptq" } }, "gptq"],
];
for (const [name, fields, ...parts] of refused) {
  test(`config: refused: ${name}`, async () => {
    let message = "";
    try {
      await configOf(fields);
    } catch (error) {
      if (!(error instanceof WeightsError)) throw error;
      message = error.message;
    }
    for (const part of ["config.json", ...parts]) assertStringIncludes(message, part);
  });
}

test("config: files that are missing or broken are named", () =>
  withFolder((folder) => {
    const messageOf = (): string => assertThrows(() => readModelConfig(folder), WeightsError).message;
    assertStringIncludes(messageOf(), join(folder, "config.json") + ": no such file");
    writeFileSync(join(folder, "config.json"), '{"a":');
    assertStringIncludes(messageOf(), "config.json: the file is not valid JSON");
    writeFileSync(join(folder, "config.json"), Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d));
    assertStringIncludes(messageOf(), "config.json: the file is not valid UTF-8");
    writeFileSync(join(folder, "config.json"), JSON.stringify(base));
    writeFileSync(join(folder, "generation_config.json"), "[]");
    assertStringIncludes(messageOf(), "generation_config.json: the file is not a JSON object");
    const other = join(folder, "other");
    mkdirSync(join(other, "config.json"), { recursive: true });
    assertStringIncludes(assertThrows(() => readModelConfig(other), WeightsError).message, "is a folder");
  }));
