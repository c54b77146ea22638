import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, LanguageModel, type Model, openModel, readModelConfig } from "../../mod.ts";
import { calibrate, evaluate, loadCalibration, modelFingerprint } from "../../lib/calibration/mod.ts";
import {
  type Calibration,
  type Device,
  KvCache,
  kvConfig,
  readCalibration,
  SCHEMES,
  type Sequence,
  Tensor,
  WindowError,
  writeCalibration,
} from "../../lib/ops/mod.ts";
import { PrefixCache } from "../../lib/engine/prefix.ts";
import { cpu, testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { withFolder } from "../weights/fixture.ts";
import { besideRepository, cacheOf, difference, prompted, readGolden, stepped } from "./golden.ts";
import { randomConfig, writeModel } from "./random_model.ts";

const seed = Date.now() & 0x7fffffff;

/** A model of an architecture with this window: 5 layers. */
async function withModel(
  device: Device,
  name: string,
  change: Record<string, unknown>,
  run: (model: Model, folder: string, ids: number[]) => void | Promise<void>,
): Promise<void> {
  await withFolder(async (folder) => {
    const random = new Random(seed),
      own = { ...randomConfig(random, name), num_hidden_layers: 5, max_position_embeddings: 1024 };
    writeModel(random, folder, { ...own, layer_types: undefined, ...change });
    using model = await openModel(device, folder);
    await run(model, folder, [...random.integers(600, 0, model.config.vocabularySize - 1)]);
  });
}

/** The next token's logits behind each of `ids`, as a sequence goes on. */
function goOn(model: Model, cache: KvCache, sequence: Sequence, ids: readonly number[]): Float32Array[] {
  using step = model.step(1);
  step.slots.write([sequence.slot]);
  return ids.map((id) => {
    step.ids.write([id]);
    step.positions.write([sequence.length]);
    sequence.extend(1);
    model.forward(step, cache, 1);
    return step.logits.read<Float32Array>();
  });
}

const windowed: readonly (readonly [name: string, change: Record<string, unknown>])[] = [
  ["MistralForCausalLM", { sliding_window: 50 }],
  ["Gemma3ForCausalLM", { sliding_window: 30, sliding_window_pattern: 3, head_dim: 64 }],
  ["GptOssForCausalLM", { sliding_window: 64 }],
];

for (const [name, change] of windowed) {
  testOnDevices(
    `${name}: a prompt that finds its start in the prefix cache has the bits of one that does not`,
    (device) =>
      withModel(device, name, change, (model, folder, ids) => {
        const block = 128;
        for (const kv of ["bf16", "vq2"]) {
          const config = kvConfig(kv, { sinks: 4, window: 16 }), calibration = loadCalibration(folder, model, config);
          using cache = new KvCache(device, model.cacheShape, config, calibration, { context: 640, sequences: 8 });
          using prefixes = new PrefixCache<Sequence>(cache, block, 5);
          using logits = Tensor.empty(device, "f32", [1, model.config.vocabularySize]);
          const read = (text: number[], from: Sequence | undefined, keep: boolean): Float32Array => {
            using sequence = from ?? cache.sequence();
            while (sequence.length < text.length) {
              const end = Math.min(text.length, sequence.length + block);
              model.prefill(logits, sequence, text.slice(sequence.length, end));
              if (keep && end % block === 0) prefixes.keep(text.slice(0, end), sequence);
            }
            return logits.read<Float32Array>();
          };
          const other = [...ids.slice(0, 300), ...ids.slice(100, 250)];
          const misses = [ids, other].map((text) => read(text, undefined, false));
          read(ids, undefined, true);
          [[ids, 512], [other, 256]].forEach(([text, held], i) => {
            const { sequence } = prefixes.find(text as number[]);
            assertEquals(sequence?.length, held as number, "tokens found");
            assertEquals(read(text as number[], sequence, false), misses[i]);
          });
          // A state that is longer than the prompt and no longer has its windows is not taken.
          while (prefixes.evict()) continue;
          using long = cache.sequence();
          model.prefill(logits, long, ids.slice(0, 512));
          prefixes.keep(ids.slice(0, 512), long);
          const { sequence, common } = prefixes.find(other);
          assertEquals([sequence, common], [undefined, 256]);
        }
      }),
  );
}

testOnDevices(
  "a sequence that went back, or was forked, goes on as one that never went on",
  (device) =>
    withModel(device, "Gemma3ForCausalLM", { sliding_window: 30, sliding_window_pattern: 3 }, (model, folder, ids) => {
      for (const kv of ["bf16", "vq2"]) {
        using cache = cacheOf(folder, model, kv, 3);
        using sequence = cache.sequence();
        goOn(model, cache, sequence, ids.slice(0, 160));
        sequence.truncate(100);
        using fork = sequence.fork();
        goOn(model, cache, fork, ids.slice(300, 330));
        const found = goOn(model, cache, sequence, ids.slice(200, 230)).at(-1)!;
        assertEquals(found, stepped(model, cache, [...ids.slice(0, 100), ...ids.slice(200, 230)]).at(-1));
        const before = sequence.length;
        goOn(model, cache, sequence, ids.slice(0, 110));
        assertThrows(() => sequence.truncate(before), WindowError);
        sequence.truncate(0);
        assertEquals(
          goOn(model, cache, sequence, ids.slice(0, 5)).at(-1),
          stepped(model, cache, ids.slice(0, 5)).at(-1),
        );
      }
    }),
);

testOnDevices(
  "a prompt behind a prompt is as one, whatever the window is to the chunks",
  (device) =>
    withModel(device, "MistralForCausalLM", { sliding_window: 33 }, (model, folder, ids) => {
      using cache = cacheOf(folder, model, "bf16");
      using logits = Tensor.empty(device, "f32", [1, model.config.vocabularySize]);
      const whole = prompted(model, cache, ids.slice(0, 250)), bound = device.name === "cpu" ? 1e-2 : 3e-2;
      for (const parts of [[1, 249], [32, 33, 185], [34, 216], [100, 1, 1, 148], [200, 50]]) {
        for (const rows of [10, 33, 512]) {
          using sequence = cache.sequence();
          for (const part of parts) {
            model.prefill(logits, sequence, ids.slice(sequence.length, sequence.length + part), { plan: { rows } });
          }
          const error = difference(logits.read<Float32Array>(), whole);
          assert(error <= bound, `parts ${parts} in chunks of ${rows}: ${error}, seed ${seed}`);
        }
      }
    }),
);

test("an interrupted prompt of a model with windows leaves a sequence as it was, or says that it is lost", () =>
  withModel(cpu, "GptOssForCausalLM", { sliding_window: 40 }, (model, folder, ids) => {
    using cache = cacheOf(folder, model, "bf16", 2);
    using logits = Tensor.empty(cpu, "f32", [1, model.config.vocabularySize]);
    using sequence = cache.sequence();
    model.prefill(logits, sequence, ids.slice(0, 60));
    const read = (tokens: number) => {
      const abort = new AbortController(), onProgress = () => abort.abort(new Error("enough"));
      model.prefill(logits, sequence, ids.slice(60, 60 + tokens), { signal: abort.signal, onProgress });
    };
    using untouched = sequence.fork();
    assertThrows(() => read(50), Error, "enough");
    assertEquals([sequence.length, sequence.pages.length], [60, 1]);
    assertEquals(goOn(model, cache, sequence, ids.slice(100, 101)), goOn(model, cache, untouched, ids.slice(100, 101)));
    assertThrows(() => read(120), Error, "enough");
    assertThrows(() => sequence.extend(1), WindowError, "cannot go back to 61");
  }));

const { folder: models, absent } = besideRepository("architectures");

// Norms of keys, biases of keys, sinks as logits, heads of 256 channels beside windows.
for (const name of ["qwen3", "qwen2", "gpt-oss", "gemma3"]) {
  test(
    `${name}: transforms and codebooks are fitted, and little is lost at 4 bits`,
    { skip: absent },
    async () => {
      const path = join(models, name), random = new Random(77), { ids } = readGolden(join(path, "golden.json"));
      using model = await openModel(cpu, path);
      const { vocabularySize, layers } = model.config, { windows = [] } = model.cacheShape;
      const passages = [0, 1].map(() => random.integers(300, 0, vocabularySize - 1));
      const config = kvConfig("d2b8", { sinks: 4, window: 16 }), training = { samples: 4096, iterations: 4 };
      const made = await calibrate(model, config, passages, SCHEMES["vecinfer+"], training);
      const coded = Array.from({ length: layers }, (_, layer) => layer).filter((layer) => !windows[layer]).map(String);
      for (const side of [made.keys, made.values]) assertEquals(Object.keys(side.layers), coded);
      await withFolder(async (folder) => {
        const file = join(folder, "d2b8.vecinfer.safetensors"), print = modelFingerprint(path);
        writeCalibration(file, made, model.cacheShape, print);
        const read = readCalibration(file, print, model.cacheShape, config) as Calibration;
        assertEquals([read.keys.transform, ...Object.keys(read.keys.layers)], ["fitted", ...coded]);
        using fitted = new KvCache(cpu, model.cacheShape, config, read, { context: 256 });
        using free = cacheOf(path, model, "d2b8");
        using exact = cacheOf(path, model, "bf16");
        const [, one, other] = await evaluate(model, exact, [fitted, free], [Int32Array.from(ids)]);
        // Random weights have no outliers, which is what data-free codes are made for: a fit to few tokens comes near them.
        assert(one.kl > 0 && one.kl < 0.1 && one.kl < 1.5 * other.kl, `KL ${one.kl}, data-free ${other.kl}`);
      });
    },
  );
}

test("biases of keys that are far larger than the keys cost a fitted transform little", () =>
  withFolder(async (folder) => {
    const random = new Random(78), base = randomConfig(random, "Qwen2ForCausalLM");
    const config = { ...base, head_dim: 64, num_hidden_layers: 2, use_sliding_window: false };
    writeModel(random, folder, config, (name, values) => {
      // As in Qwen 2.5: a few channels, of pairs that turn slowly.
      if (name.endsWith("k_proj.bias")) { for (const channel of [27, 30, 59, 62]) values[channel] = 40; }
    });
    using model = await openModel(cpu, folder);
    const text = (length: number) => random.integers(length, 0, model.config.vocabularySize - 1);
    const training = { samples: 4096, iterations: 4 }, scheme = SCHEMES["vecinfer+"];
    const calibration = await calibrate(model, kvConfig("d2b8"), [text(300), text(300)], scheme, training);
    const own = kvConfig("d2b8", { sinks: 4, window: 16 });
    using fitted = new KvCache(cpu, model.cacheShape, own, calibration, { context: 256 });
    using free = cacheOf(folder, model, "d2b8");
    using exact = cacheOf(folder, model, "bf16");
    const [, one, other] = await evaluate(model, exact, [fitted, free], [text(200)]);
    assert(one.kl < 0.05 && one.kl < other.kl / 4, `KL ${one.kl}, data-free ${other.kl}`);
  }));

test("heads of 96 channels and windows generate, in bf16 by default, and the configuration says so", () =>
  withFolder(async (folder) => {
    const random = new Random(seed),
      base = randomConfig(random, "Phi3ForCausalLM"),
      { vocabularySize } = readModelConfig(fileURLToPath(EMBEDDED_MODEL));
    const all = { ...base, vocab_size: vocabularySize, hidden_size: 64, num_hidden_layers: 2, rope_scaling: null };
    for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
      copyFileSync(fileURLToPath(new URL(name, `${EMBEDDED_MODEL}/`)), join(folder, name));
    }
    writeModel(random, folder, { ...all, head_dim: 96, sliding_window: 20 });
    using model = await LanguageModel.load(folder, { device: "cpu", context: 100 });
    const { kv, keys, growingLayers, slidingLayers, bytesPerToken } = model.config;
    assertEquals({ kv, keys, growingLayers, slidingLayers, bytesPerToken }, {
      kv: "bf16",
      keys: "bf16",
      growingLayers: 0,
      slidingLayers: 2,
      bytesPerToken: 0,
    });
    const ids = [...random.integers(30, 0, vocabularySize - 1)], generated: number[] = [];
    for await (const { tokens } of model.generate(ids, { maxTokens: 40, temperature: 0 })) {
      generated.push(...tokens.map(({ id }) => id));
    }
    assertEquals(generated.length, 40);
    const text = [...ids, ...generated], logits = stepped(model.model, model.cache, text.slice(0, -1));
    generated.forEach((id, i) => {
      const own = logits[ids.length - 1 + i], behind = Math.max(...own) - own[id];
      assert(behind <= 1e-2 * Math.max(...own.map(Math.abs)), `token ${i} is ${behind} behind the best`);
    });
    const refused = await LanguageModel.load(folder, { device: "cpu", kv: "vq4" }).then(() => "", String);
    assertStringIncludes(refused, "kv: vq4 codes heads of 64, 128, 256 channels; this model's have 96: take bf16");
  }));
