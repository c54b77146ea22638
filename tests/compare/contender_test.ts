import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { test } from "node:test";
import {
  contender,
  drifts,
  evaluate,
  greedy,
  loadCalibration,
  MethodCalibrator,
  methodOf,
  type ProductMethod,
  readText,
  settle,
  textPassages,
} from "../../lib/calibration/mod.ts";
import { cacheBytes, KvCache, kvConfig } from "../../lib/ops/mod.ts";
import { folder, openEmbedded, tokenizer } from "../support/embedded.ts";
import { slow } from "../support/slow.ts";

const windows = textPassages(tokenizer, readText(`${folder}/calib.txt`), 256, 2);

test(
  "million shares one set of codebooks, cq has one a layer, head and sub-vector; bytes count each once",
  { skip: slow },
  async () => {
    using opened = await openEmbedded();
    const { model } = opened, config = kvConfig("vq1"), context = 32768, shape = model.cacheShape;
    using calibrator = new MethodCalibrator(model, windows);
    for (
      const [name, books, shared] of [
        ["million", 8, "sub-vector"],
        ["million:layer", 8 * 8, "layer and sub-vector"],
        ["cq", 8 * 2 * 8, "head and sub-vector"],
      ] as const
    ) {
      const method = methodOf(name) as ProductMethod, calibration = await calibrator.calibrate(method, config);
      const { layers, codebooks, transform, tokenScale } = calibration.keys;
      assertEquals([codebooks, transform, tokenScale], [shared, "none", false]);
      assertEquals(new Set(layers.map(({ codebook }) => codebook)).size, name === "million" ? 1 : 8);
      using made = contender(model, method, config, calibration, 256);
      const { pages, window, sinks, scales } = cacheBytes(shape, config, calibration, context);
      assertEquals(scales, 0);
      assertEquals(made.bytes(context), pages + window + sinks + 2 * books * 256 * 8 * 2);
      assertEquals(made.name, `${name} vq1`);
    }
    using few = new MethodCalibrator(model, [windows[0].subarray(0, 100)]);
    await assertRejects(() => few.calibrate(methodOf("cq") as ProductMethod, config), RangeError, "use more text");
    assertThrows(() => contender(model, methodOf("cq"), config, undefined, 64), RangeError, "needs a calibration");
  },
);

test(
  "codebooks fit the sub-vectors they are for: less distortion than one codebook for all",
  { skip: slow },
  async () => {
    using opened = await openEmbedded();
    const { model } = opened, config = kvConfig("vq1", { sinks: 0 });
    using calibrator = new MethodCalibrator(model, windows);
    const activations = await calibrator.activations({ skip: 0, window: 128 }),
      error = async (name: string) => {
        const method = methodOf(name) as ProductMethod;
        const { keys: { layers, codebooks } } = await calibrator.calibrate(method, config);
        const { codebook } = layers[2], rows = activations.layers[2].keys.rows();
        const byHead = codebooks.startsWith("head"), parts = codebooks.endsWith("sub-vector") ? 8 : 1;
        let sum = 0;
        for (let at = 0; at < rows.length; at += 8 * 17) { // a sample
          const sub = at / 8,
            head = byHead ? Math.floor(sub / 8) % 2 : 0,
            part = parts > 1 ? sub % 8 : 0;
          let best = Infinity;
          for (let word = (head * parts + part) * 256; word < (head * parts + part + 1) * 256; word++) {
            let distance = 0;
            for (let i = 0; i < 8; i++) distance += (rows[at + i] - codebook[word * 8 + i]) ** 2;
            best = Math.min(best, distance);
          }
          sum += best;
        }
        return sum;
      };
    const [own, part, one] = [await error("cq:plain"), await error("million:layer"), await error("vecinfer:plain")];
    assert(own < part && part < one, `${own} ${part} ${one}`);
  },
);

test("greedy generation over bf16 drifts from itself nowhere, over one bit early, and on the reference path as fused", {
  skip: slow,
}, async () => {
  using opened = await openEmbedded();
  const { device, model } = opened, exact = kvConfig("bf16"), prompts = [windows[0].subarray(0, 200)];
  const make = (config: typeof exact) =>
    new KvCache(device, model.cacheShape, config, loadCalibration(folder, model, config), { context: 320 });
  using reference = make(exact);
  using coarse = make(kvConfig("vq1", { sinks: 0, window: 8 }));
  using same = make(exact);
  // Token merging at ratio 1 gives back what it got.
  using whole = contender(model, methodOf("clustering:r1"), { ...exact, window: 64 }, undefined, 320);
  const [[none], [early], [unmerged]] = await drifts(model, reference, [same, coarse, whole.cache], prompts, 80);
  assertEquals([none, unmerged], [{ first: 80, agreement: 1 }, { first: 80, agreement: 1 }]);
  assert(early.first < 80 && early.agreement < 1, JSON.stringify(early));
  const tokens = await greedy(model, reference, prompts[0], 3);
  assertEquals(tokens.length, 3);
});

test("evaluate measures a method's cache as it is after each step is settled", async () => {
  using opened = await openEmbedded();
  const { device, model } = opened, exact = kvConfig("bf16"), passages = [windows[0].subarray(0, 130)];
  using reference = new KvCache(device, model.cacheShape, exact, loadCalibration(folder, model, exact), {
    context: 130,
  });
  using coarse = contender(model, methodOf("turboquant:b1"), exact, undefined, 130);
  const seen: number[] = [];
  const [, { kl }] = await evaluate(model, reference, [coarse.cache], passages, {
    afterStep(cache, sequence, from) {
      if (cache === coarse.cache) seen.push(from, sequence.length);
      settle(cache, sequence, from);
    },
  });
  assertEquals(seen, [0, 64, 64, 128, 128, 129]);
  assert(kl > 0.01, `KL ${kl}`);
});
