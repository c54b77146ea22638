import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { test } from "node:test";
import {
  Activations,
  KvCache,
  kvConfig,
  Llama,
  LlamaStep,
  loadCalibration,
  readText,
  Tensor,
  textWindows,
  train,
} from "../../mod.ts";
import { folder, openEmbedded, tokenizer } from "../support/embedded.ts";
import { assertAllClose } from "../support/close.ts";
import { dot, logSoftmax, row } from "../support/reference.ts";
import { slow } from "../support/slow.ts";

const windows = textWindows(tokenizer, readText(`${folder}/calib.txt`), 600, 2);

/** Keys and values [tokens, kvHeads, headDim] of a layer, a few rows of a step at a time. */
function stepped(model: Llama, window: Int32Array, layer: number) {
  const exact = kvConfig("bf16"), { q, kv, qkv } = model.sizes, { length } = window, most = 64;
  using cache = new KvCache(model.device, model.cacheShape, exact, loadCalibration(folder, model, exact), {
    context: length,
  });
  using sequence = cache.sequence();
  using step = new LlamaStep(model, most);
  const keys = new Float32Array(length * kv), values = keys.slice();
  for (let begin = 0; begin < length; begin += most) {
    const count = Math.min(most, length - begin);
    step.ids.write(window.subarray(begin, begin + count));
    step.slots.write(new Int32Array(most).fill(sequence.slot));
    step.positions.write(Int32Array.from({ length: count }, (_, i) => begin + i));
    sequence.extend(count);
    model.forward(step, cache, count, (i) => {
      if (i !== layer) return;
      const rows = step.qkv.read<Float32Array>();
      for (let t = 0; t < count; t++) {
        const own = rows.subarray(t * qkv, (t + 1) * qkv);
        keys.set(own.subarray(q, q + kv), (begin + t) * kv);
        values.set(own.subarray(q + kv), (begin + t) * kv);
      }
    });
  }
  return { keys, values };
}

test("activations are the keys and values that the model's steps have, without the first positions", async () => {
  using opened = await openEmbedded();
  const { model } = opened, { kv } = model.sizes, layer = 5;
  using all = await Activations.capture(model, windows, { skip: 4 });
  assertEquals(all.tokens, 2 * 596);
  for (const [index, window] of windows.entries()) {
    const found = stepped(model, window, layer), from = index * 596 * kv;
    for (const which of ["keys", "values"] as const) {
      // A step's attention reads the bf16 cache, a prompt's its own f32.
      const near = { absolute: 5e-2, relative: 2e-2 };
      for (const t of [4, 100, 511, 512, 599]) {
        const at = from + (t - 4) * kv;
        const own = found[which].subarray(t * kv, (t + 1) * kv);
        assertAllClose(all.rows(layer, which).subarray(at, at + kv), own, near, `${which} of ${t} of window ${index}`);
      }
    }
  }
  assertThrows(() => all.importance(0, "keys"), RangeError, "weights: true");
  await assertRejects(() => Activations.capture(model, windows, { skip: 600 }), RangeError, "600 first positions");
});

/** Queries [tokens, heads, headDim] and keys and values [tokens, 2, kvHeads, headDim] of a layer, as a prompt has them. */
function prompted(model: Llama, window: Int32Array, layer: number) {
  const exact = kvConfig("bf16"), { q, kv } = model.sizes, context = window.length;
  using cache = new KvCache(model.device, model.cacheShape, exact, loadCalibration(folder, model, exact), { context });
  using sequence = cache.sequence();
  using logits = Tensor.empty(model.device, "f32", [1, model.config.vocabularySize]);
  const queries = new Float32Array(context * q), sides = new Float32Array(context * 2 * kv);
  let at = 0;
  model.prefill(logits, sequence, window, {
    observe: (i, rows) => i === layer && sides.set(rows.read<Float32Array>()),
    observeQueries: (i, rows) => {
      if (i !== layer) return;
      queries.set(rows.read<Float32Array>(), at);
      at += rows.size;
    },
  });
  assertEquals(at, queries.length);
  return { queries, sides };
}

/** Sums of importance over the queries at `asked`, for every position of a window, float64 [tokens * kvHeads]. */
function importance(model: Llama, window: Int32Array, layer: number, asked: readonly number[]) {
  const { heads, kvHeads, headDim } = model.config, { queries, sides } = prompted(model, window, layer);
  const out = { keys: new Float64Array(window.length * kvHeads), values: new Float64Array(window.length * kvHeads) };
  for (const t of asked) {
    for (let h = 0; h < heads; h++) {
      const head = Math.floor(h * kvHeads / heads), q = row(queries, t * heads + h, headDim);
      const own = (side: number) =>
        Array.from({ length: t + 1 }, (_, j) => row(sides, (2 * j + side) * kvHeads + head, headDim));
      const keys = own(0), values = own(1);
      const p = logSoftmax(keys.map((k) => dot(q, k) / Math.sqrt(headDim))).map(Math.exp);
      const o = q.map((_, i) => p.reduce((s, w, j) => s + w * values[j][i], 0));
      p.forEach((w, j) => {
        const away = values[j].map((x, i) => x - o[i]);
        out.keys[j * kvHeads + head] += w * w * dot(away, away);
        out.values[j * kvHeads + head] += w * w;
      });
    }
  }
  return out;
}

test("importance is what a small error of a key or value does to the attention's output, against float64", async () => {
  using opened = await openEmbedded();
  const { model } = opened, { kvHeads } = model.config, layer = 3, left = 3;
  // Fewer positions than the 64 queries that importance is estimated from, so all of them count; then every second or so.
  const some = [windows[0].subarray(0, 40), windows[1].subarray(0, 150)];
  using captured = await Activations.capture(model, some, { skip: left, weights: true });
  const expected = some.map((window) => {
    const queries = Math.min(64, window.length);
    const asked = Array.from({ length: queries }, (_, i) => Math.floor((i + 0.5) * window.length / queries));
    return importance(model, window, layer, asked);
  });
  for (const which of ["keys", "values"] as const) {
    const kept = expected.flatMap((sums) => [...sums[which].subarray(left * kvHeads)]);
    const mean = kept.reduce((s, x) => s + x, 0) / kept.length;
    const exact = kept.map((x) => Math.max(x / mean, 0.01)), found = captured.importance(layer, which);
    assertEquals(found.length, (37 + 147) * kvHeads);
    assert(exact.some((x) => x === 0.01) && exact.some((x) => x > 1));
    assertAllClose(found, exact, { relative: 1e-5 }, which);
  }
});

test("importance is the same where a prompt goes through the layers in chunks", { skip: slow }, async () => {
  using opened = await openEmbedded();
  const { model } = opened, { kvHeads } = model.config, layer = 2, window = windows[0];
  using captured = await Activations.capture(model, [window], { skip: 0, weights: true });
  const asked = Array.from({ length: 64 }, (_, i) => Math.floor((i + 0.5) * 600 / 64));
  assert(model.prefillPlan(600).rows < 600);
  const { values } = importance(model, window, layer, asked), mean = values.reduce((s, x) => s + x, 0) / values.length;
  const exact = values.map((x) => Math.max(x / mean, 0.01));
  assertEquals(exact.length, 600 * kvHeads);
  assertAllClose(captured.importance(layer, "values"), exact, { relative: 1e-5 });
});

test("a recipe with importance weights its centroids, and needs them captured", { skip: slow }, async () => {
  using opened = await openEmbedded();
  const { device, model } = opened, { kvHeads, headDim } = model.cacheShape, config = kvConfig("vq1"), layer = 4;
  using activations = await Activations.capture(model, windows.slice(1), { weights: true });
  for (const recipe of [{ perHead: true }, { perHead: true, tokenScale: true }, { shared: true }]) {
    const [plain, weighted] = [
      await train(device, activations, config, { ...recipe, iterations: 6 }),
      await train(device, activations, config, { ...recipe, iterations: 6, importance: true }),
    ];
    const { subDim, bits } = config.values, words = 2 ** bits, parts = headDim / subDim;
    const importance = activations.importance(layer, "values"), rows = activations.rows(layer, "values");
    /** Mean squared distance of the values to their nearest codewords, each token counting as much as `weight` says. */
    const distortion = ({ values }: typeof plain, weight: (vector: number) => number) => {
      const { codebook } = values.layers[layer];
      let sum = 0, total = 0;
      for (let vector = 0; vector < activations.tokens * kvHeads; vector++) {
        const own = row(rows, vector, headDim), book = values.codebookHeads > 1 ? vector % kvHeads : 0;
        const scale = values.tokenScale ? Math.sqrt(dot(own, own) / headDim) : 1;
        for (let part = 0; part < parts; part++) {
          let best = Infinity;
          for (let word = book * words; word < (book + 1) * words; word++) {
            let distance = 0;
            for (let i = 0; i < subDim; i++) {
              distance += (own[part * subDim + i] - scale * codebook[word * subDim + i]) ** 2;
            }
            best = Math.min(best, distance);
          }
          sum += best * weight(vector);
          total += weight(vector);
        }
      }
      return sum / total;
    };
    const name = JSON.stringify(recipe), [even, counted] = [() => 1, (vector: number) => importance[vector]];
    const [a, b] = [distortion(plain, counted), distortion(weighted, counted)];
    assert(b < a, `${name}: weighted distortion ${b} with importance, ${a} without`);
    const [c, d] = [distortion(plain, even), distortion(weighted, even)];
    assert(c < d, `${name}: distortion ${d} with importance, ${c} without`);
  }
  using without = await Activations.capture(model, [windows[0].subarray(0, 300)]);
  await assertRejects(
    () => train(device, without, config, { importance: true }),
    RangeError,
    "importance was not captured",
  );
});

/** Heads of channels turned on by RoPE, in float64. */
function turned(x: readonly number[], by: number, theta: number): number[] {
  const half = x.length / 2;
  return x.map((value, i) => {
    const angle = by * theta ** (-2 * (i % half) / x.length), other = x[(i + half) % x.length];
    return value * Math.cos(angle) + (i < half ? -other : other) * Math.sin(angle);
  });
}

test("keys and queries are spread over more positions than a window has, values are not", async () => {
  using opened = await openEmbedded();
  const { model } = opened, { kvHeads, headDim, heads, ropeTheta } = model.config, layer = 3, length = 96;
  assertEquals(model.config.ropeScaling?.type ?? "default", "default");
  const window = windows[0].subarray(0, length), left = 4;
  using plain = await Activations.capture(model, [window], { skip: left });
  using spread = await Activations.capture(model, [window], { skip: left, positions: 3 * length });
  assertEquals(spread.rows(layer, "values"), plain.rows(layer, "values"));
  const keys = plain.rows(layer, "keys"), found = spread.rows(layer, "keys");
  for (let t = left; t < length; t++) {
    for (let head = 0; head < kvHeads; head++) {
      const vector = (t - left) * kvHeads + head, own = turned(row(keys, vector, headDim), length * (t % 3), ropeTheta);
      assertAllClose(
        Float32Array.from(row(found, vector, headDim)),
        own,
        { absolute: 1e-3, relative: 1e-4 },
        `key ${t}`,
      );
    }
  }
  // One query in eight, and of these one in three stays where it is.
  const { queries } = prompted(model, window, layer), group = heads / kvHeads, moments = new Float64Array(headDim ** 2);
  for (let i = 0; i < length / 8; i++) {
    for (let head = 0; head < group; head++) {
      const q = turned(row(queries, 8 * i * heads + head, headDim), length * (i % 3), ropeTheta);
      q.forEach((a, r) => q.forEach((b, c) => moments[r * headDim + c] += a * b / (length / 8 * group)));
    }
  }
  const own = spread.queryMoments[layer].subarray(0, headDim ** 2), scale = Math.max(...own);
  assertAllClose(Float32Array.from(own), [...moments], { absolute: 1e-5 * scale, relative: 1e-4 }, "moments");
});
