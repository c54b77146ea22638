import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { openModel } from "../../mod.ts";
import { evaluate } from "../../lib/calibration/mod.ts";
import { fitsHeadDim, kvConfig, PRESETS, Tensor } from "../../lib/ops/mod.ts";
import { ARCHITECTURES } from "../../lib/models/model.ts";
import { cpu, testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { withFolder } from "../weights/fixture.ts";
import { cacheOf, difference, prompted, stepped } from "./golden.ts";
import { randomConfig, writeModel } from "./random_model.ts";

const seed = Date.now() & 0x7fffffff;

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

        // Numbers that are close to the middle of two of bf16 may be rounded otherwise; near a tie another expert may then be chosen.
        const [chunked, rounded] = device.name === "cpu" ? [1e-4, 1e-2] : [2e-2, 5e-2];
        texts.forEach((text, i) => {
          const whole = prompted(model, cache, text),
            parts = difference(prompted(model, cache, text, { rows: 7 }), whole);
          assert(parts <= chunked, `chunks of 7 are ${parts} off one (${told})`);
          // Steps read keys and values that were rounded to bf16, as this prompt's are.
          const error = difference(prompted(model, cache, text, { kv: "bf16" }), alone[i].at(-1)!);
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

        // With every preset there are numbers, and codes where a layer grows.
        using owned = new DisposableStack();
        const { headDim, windows = [0] } = model.cacheShape, codes = windows.includes(0);
        const presets = Object.keys(PRESETS).filter((kv) => kv !== "bf16" && fitsHeadDim(kvConfig(kv), headDim));
        const caches = presets.map((kv) => owned.use(cacheOf(folder, model, kv)));
        const [, ...qualities] = await evaluate(model, cache, caches, [Int32Array.from(texts[0])]);
        qualities.forEach(({ kl, perplexity }, i) => {
          const finite = Number.isFinite(perplexity) && Number.isFinite(kl);
          assert(finite && (codes ? kl > 0 : kl === 0), `${presets[i]}: KL ${kl} (${told})`);
        });
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
