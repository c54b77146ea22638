import { assert, assertEquals } from "@std/assert";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openModel, readModelConfig } from "../../mod.ts";
import { Tensor, writeSafetensors } from "../../lib/ops/mod.ts";
import { ARCHITECTURES, planOf } from "../../lib/models/model.ts";
import { DecoderWeights } from "../../lib/models/weights/decoder_weights.ts";
import { architectures } from "../../lib/weights/architectures.ts";
import { cpu, testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { withFolder } from "../weights/fixture.ts";
import { cacheOf, difference, prompted, stepped } from "./golden.ts";

const seed = Date.now() & 0x7fffffff;

/** A config.json of an architecture with random sizes. */
function randomConfig(random: Random, name: string): Record<string, unknown> {
  const kvHeads = random.integer(1, 3),
    group = [1, 3, 7][random.integer(0, 2)],
    headDim = [64, 128][random.integer(0, 1)];
  const layers = random.integer(1, 5), pick = (of: readonly number[]) => of[random.integer(0, of.length - 1)];
  const theta = pick([1e4, 5e5, 1e6]), { modelType } = architectures[name];
  const common = {
    architectures: [name],
    model_type: modelType,
    vocab_size: random.integer(65, 200),
    hidden_size: 32 * random.integer(1, 8),
    intermediate_size: 16 * random.integer(1, 12),
    num_hidden_layers: layers,
    num_attention_heads: kvHeads * group,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    max_position_embeddings: 512,
    rms_norm_eps: pick([1e-5, 1e-6]),
    rope_theta: theta,
    tie_word_embeddings: random.uniform() < 0.5,
    sliding_window: null,
  };
  const flag = () => random.uniform() < 0.5, count = random.integer(2, 9);
  const long = (part: number) => Array.from({ length: headDim * part / 2 }, (_, i) => 1 + i * random.uniform() / 8);
  switch (name) {
    case "LlamaForCausalLM":
      return {
        ...common,
        attention_bias: flag(),
        mlp_bias: flag(),
        rope_scaling: {
          rope_type: "yarn",
          factor: 2 + random.uniform(),
          original_max_position_embeddings: 40,
          truncate: flag(),
        },
      };
    case "Qwen3MoeForCausalLM":
      return {
        ...common,
        num_experts: count,
        num_experts_per_tok: random.integer(1, count),
        moe_intermediate_size: 16 * random.integer(1, 6),
        norm_topk_prob: flag(),
        mlp_only_layers: flag() ? [0] : [],
      };
    case "MixtralForCausalLM":
      return { ...common, num_local_experts: count, num_experts_per_tok: random.integer(1, count) };
    case "Phi3ForCausalLM":
      return {
        ...common,
        partial_rotary_factor: 0.75,
        original_max_position_embeddings: 16,
        rope_scaling: { type: "longrope", short_factor: long(0.75), long_factor: long(0.75) },
      };
    case "GraniteForCausalLM":
      return {
        ...common,
        embedding_multiplier: 4 + random.uniform(),
        attention_multiplier: 1 / headDim,
        residual_multiplier: 0.2 + random.uniform(),
        logits_scaling: 1 + random.uniform(),
      };
    case "SmolLM3ForCausalLM":
      return { ...common, no_rope_layer_interval: random.integer(1, 4) };
    case "Glm4ForCausalLM":
      return { ...common, partial_rotary_factor: pick([0.25, 0.5]), attention_bias: flag() };
    default:
      return common;
  }
}

/** Writes a model of a configuration: norms about 1, matrices so wide that activations stay as they are. */
function writeModel(random: Random, folder: string, config: Record<string, unknown>): void {
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  using weights = new DecoderWeights(cpu, planOf(readModelConfig(folder)));
  const tensors = weights.tensors.flatMap(({ kind, parts, width }) =>
    parts.map(([name, rows]) => {
      const deviation = kind === "matrix" ? 1 / Math.sqrt(width) : 0.2,
        shape = kind === "matrix" ? [rows, width] : [rows];
      const values = random.normals(rows * width, deviation).map((x) => kind === "norm" ? 1 + x : x);
      return [name, { dtype: "F32" as const, shape, data: new Uint8Array(values.buffer) }] as const;
    })
  );
  writeSafetensors(join(folder, "model.safetensors"), Object.fromEntries(tensors));
}

for (const { name } of ARCHITECTURES) {
  testOnDevices(
    `${name}, random sizes: decode is the prompt, and a batch is each alone`,
    (device) =>
      withFolder(async (folder) => {
        const own = seed + ARCHITECTURES.findIndex((each) => each.name === name), random = new Random(own);
        const config = randomConfig(random, name), told = `seed ${own}, ${JSON.stringify(config)}`;
        writeModel(random, folder, config);
        using model = await openModel(device, folder);
        using cache = cacheOf(folder, model, "bf16", 3);
        const { vocabularySize: vocabulary } = model.config;
        const texts = [40, 33, 21].map((length) => [...random.integers(length, 0, vocabulary - 1)]);
        const alone = texts.map((text) => stepped(model, cache, text));

        // Steps read keys and values that were rounded to bf16; near a tie another expert may then be chosen.
        const [chunked, rounded] = device.name === "cpu" ? [1e-4, 2e-2] : [2e-2, 5e-2];
        texts.forEach((text, i) => {
          const whole = prompted(model, cache, text), parts = difference(prompted(model, cache, text, 7), whole);
          assert(parts <= chunked, `chunks of 7 are ${parts} off one (${told})`);
          const error = difference(whole, alone[i].at(-1)!);
          assert(error <= (model.config.experts ? 0.5 : rounded), `the prompt is ${error} off its steps (${told})`);
        });

        // One row is another sequence, and the newest rows pad.
        using step = model.step(3);
        const sequences = texts.map(() => cache.sequence());
        step.slots.write(sequences.map(({ slot }) => slot));
        for (let position = 0; position < 40; position++) {
          const ids = texts.map((text) => text[position] ?? 0), runs = texts.map((text) => position < text.length);
          sequences.forEach((sequence, i) => runs[i] && sequence.extend(1));
          step.ids.write(ids);
          step.positions.write(runs.map((run) => run ? position : -1));
          model.forward(step, cache, 3);
          const logits = step.logits.read<Float32Array>();
          runs.forEach((run, i) => {
            if (!run) return;
            const error = difference(logits.subarray(i * vocabulary, (i + 1) * vocabulary), alone[i][position]);
            assert(
              error <= (device.name === "cpu" ? 1e-4 : 2e-2),
              `row ${i} at ${position} is ${error} off alone (${told})`,
            );
          });
        }
        for (const sequence of sequences) sequence[Symbol.dispose]();
      }),
  );
}

test("a layer turns what it turned, by as much, and leaves what it does not turn", () =>
  withFolder(async (folder) => {
    for (const name of ["Glm4ForCausalLM", "Phi3ForCausalLM", "SmolLM3ForCausalLM", "LlamaForCausalLM"]) {
      const random = new Random(seed),
        config = { ...randomConfig(random, name), num_hidden_layers: 2, no_rope_layer_interval: 2 };
      writeModel(random, folder, config);
      using model = await openModel(cpu, folder);
      const { kvHeads, headDim } = model.cacheShape, keys: Float32Array[] = [], later: Float32Array[] = [];
      using cache = cacheOf(folder, model, "bf16");
      // The same token again and again: its first layer's key is one key, turned to each position.
      using sequence = cache.sequence();
      const observe = (layer: number, kv: Tensor): void => {
        const own = kv.columns(0, kvHeads * headDim);
        using from = Tensor.from(cpu, own.rows(0, 20).read(), [20, kvHeads * headDim]);
        using by = Tensor.from(cpu, new Int32Array(20).fill(10));
        model.rotate(from, by, kvHeads, layer);
        keys.push(from.read());
        later.push(own.rows(10, 20).read());
      };
      for (const _ of model.prefillParts(null, sequence, Array<number>(30).fill(5), { observe })) continue;
      assertEquals(keys.length, 2);
      const error = difference(keys[0], later[0]);
      assert(error < 1e-4, `${name}: ${error}`);
      if (name === "SmolLM3ForCausalLM") assert(difference(keys[1], later[1]) < 1e-4, "layer 1 does not turn");
    }
  }));
