import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { test } from "node:test";
import { train } from "../../lib/calibration/train.ts";
import { type Model } from "../../mod.ts";
import { Activations, loadCalibration, readText, textPassages } from "../../lib/calibration/mod.ts";
import { KvCache, kvConfig, type Scheme, SCHEMES, type SideScheme, Tensor } from "../../lib/ops/mod.ts";
import { ropeFrequencies } from "../../lib/models/rope.ts";
import { folder, openEmbedded, tokenizer } from "../support/embedded.ts";
import { assertAllClose } from "../support/close.ts";
import { dot, logSoftmax, row } from "../support/reference.ts";
import { slow } from "../support/slow.ts";

const windows = textPassages(tokenizer, readText(`${folder}/calib.txt`), 600, 2);

/** The paper's scheme with a change of both sides. */
function paperWith(change: Partial<SideScheme>): Scheme {
  const { keys, values } = SCHEMES.vecinfer;
  return { keys: { ...keys, ...change }, values: { ...values, ...change } };
}

/** Widths of the query, of the keys (or values), and of all three in one row. */
function widths({ config: { heads, kvHeads, headDim } }: Model) {
  const q = heads * headDim, kv = kvHeads * headDim;
  return { q, kv, qkv: q + 2 * kv };
}

/** Keys and values [tokens, kvHeads, headDim] of a layer, a few rows of a step at a time. */
function stepped(model: Model, window: Int32Array, layer: number) {
  const exact = kvConfig("bf16"), { q, kv, qkv } = widths(model), { length } = window, most = 64;
  using cache = new KvCache(model.device, model.cacheShape, exact, loadCalibration(folder, model, exact), {
    context: length,
  });
  using sequence = cache.sequence();
  using step = model.step(most);
  const keys = new Float32Array(length * kv), values = keys.slice();
  for (let begin = 0; begin < length; begin += most) {
    const count = Math.min(most, length - begin);
    step.ids.write(window.subarray(begin, begin + count));
    step.slots.write(new Int32Array(most).fill(sequence.slot));
    step.positions.write(Int32Array.from({ length: count }, (_, i) => begin + i));
    sequence.extend(count);
    model.forwardObserved(step, cache, count, (i) => {
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
  const { model } = opened, { kv } = widths(model), layer = 5;
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
        assertAllClose(
          all.layers[layer][which].rows().subarray(at, at + kv),
          own,
          near,
          `${which} of ${t} of window ${index}`,
        );
      }
    }
  }
  assertThrows(() => all.layers[0].keys.importance(), RangeError, "importance: true");
  await assertRejects(() => Activations.capture(model, windows, { skip: 600 }), RangeError, "600 first positions");
});

test("tokens spread over a context have the same values, and keys and queries of where they stand for", async () => {
  using opened = await openEmbedded();
  const { model } = opened, { kvHeads, headDim } = model.config, layer = 6, width = kvHeads * headDim, context = 2600;
  using plain = await Activations.capture(model, windows, { importance: true });
  using spread = await Activations.capture(model, windows, { importance: true, context });
  assertAllClose(
    spread.layers[layer].values.rows(),
    [...plain.layers[layer].values.rows()],
    { absolute: 1e-6 },
    "values",
  );
  const frequencies = ropeFrequencies(model.config), keys = plain.layers[layer].keys.rows();
  const expected = Float64Array.from(keys), counts = new Int32Array(13);
  for (let at = 0; at < keys.length; at += headDim) {
    const window = Math.floor(at / (596 * width)), t = Math.floor(at / width) % 596 + 4;
    const position = 4 + Math.floor((window * 596 + t) * (Math.sqrt(5) - 1) / 2 % 1 * (context - 4));
    counts[Math.floor(position / 200)]++;
    for (let i = 0; i < headDim / 2; i++) {
      const angle = (position - t) * frequencies[i], [a, b] = [keys[at + i], keys[at + i + headDim / 2]];
      expected[at + i] = a * Math.cos(angle) - b * Math.sin(angle);
      expected[at + i + headDim / 2] = b * Math.cos(angle) + a * Math.sin(angle);
    }
  }
  const even = keys.length / headDim / counts.length;
  assert(counts.every((count) => Math.abs(count / even - 1) < 0.1), `keys of 200 positions each: ${counts}`);
  assertAllClose(spread.layers[layer].keys.rows(), [...expected], { absolute: 5e-3 }, "keys");
  // What a key counts for follows from the window as it is; the moments of the queries turn.
  const total = (x: ArrayLike<number>) => Array.from(x).reduce((sum, value) => sum + value, 0);
  const [weights, others] = [plain, spread].map((each) => total(each.layers[layer].keys.importance()));
  assert(Math.abs(others / weights - 1) < 1e-6, `importance adds up to ${others}, without rotation to ${weights}`);
  const trace = (moments: Float64Array) => moments.reduce((sum, x, i) => i % (headDim + 1) === 0 ? sum + x : sum, 0);
  const [of, to] = [plain, spread].map((each) => each.layers[layer].queryMoments.subarray(0, headDim * headDim));
  assert(Math.abs(trace(to) / trace(of) - 1) < 1e-3, "rotation keeps lengths");
  assert(
    of.some((x, i) => Math.abs(x - to[i]) > 0.05 * trace(of) / headDim),
    "the moments of the queries have not turned",
  );
});

/** Queries [tokens, heads, headDim] and keys and values [tokens, 2, kvHeads, headDim] of a layer, as a prompt has them. */
function prompted(model: Model, window: Int32Array, layer: number) {
  const exact = kvConfig("bf16"), { q, kv } = widths(model), context = window.length;
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

/**
 * Sums of importance over the queries at `asked`, for every position of a window, float64 [tokens * kvHeads], and what each query counts,
 * [tokens * heads]; without the first `skip` tokens and the newest `window`.
 */
function importance(
  model: Model,
  tokens: Int32Array,
  layer: number,
  asked: readonly number[],
  { skip = 0, window = 0 } = {},
) {
  const { heads, kvHeads, headDim } = model.config, { queries, sides } = prompted(model, tokens, layer);
  const of = (count: number) => new Float64Array(tokens.length * count);
  const out = { keys: of(kvHeads), values: of(kvHeads), queries: of(heads) };
  for (const t of asked) {
    for (let h = 0; h < heads; h++) {
      const head = Math.floor(h * kvHeads / heads), q = row(queries, t * heads + h, headDim);
      const own = (side: number) =>
        Array.from({ length: t + 1 }, (_, j) => row(sides, (2 * j + side) * kvHeads + head, headDim));
      const keys = own(0), values = own(1);
      const p = logSoftmax(keys.map((k) => dot(q, k) / Math.sqrt(headDim))).map(Math.exp);
      const o = q.map((_, i) => p.reduce((s, w, j) => s + w * values[j][i], 0));
      p.forEach((w, j) => {
        if (j < skip || j > t - window) return;
        const away = values[j].map((x, i) => x - o[i]), squared = w * w * dot(away, away);
        out.keys[j * kvHeads + head] += squared;
        out.values[j * kvHeads + head] += w * w;
        out.queries[t * heads + h] += squared;
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
  using captured = await Activations.capture(model, some, { skip: left, importance: true });
  const expected = some.map((window) => {
    const queries = Math.min(64, window.length);
    const asked = Array.from({ length: queries }, (_, i) => Math.floor((i + 0.5) * window.length / queries));
    return importance(model, window, layer, asked);
  });
  for (const which of ["keys", "values"] as const) {
    const kept = expected.flatMap((sums) => [...sums[which].subarray(left * kvHeads)]);
    const mean = kept.reduce((s, x) => s + x, 0) / kept.length;
    const exact = kept.map((x) => Math.max(x / mean, 0.01)), found = captured.layers[layer][which].importance();
    assertEquals(found.length, (37 + 147) * kvHeads);
    assert(exact.some((x) => x === 0.01) && exact.some((x) => x > 1));
    assertAllClose(found, exact, { relative: 1e-5 }, which);
  }
});

test("importance is the same where a prompt goes through the layers in chunks", { skip: slow }, async () => {
  using opened = await openEmbedded();
  const { model } = opened, { kvHeads } = model.config, layer = 2, window = windows[0];
  using captured = await Activations.capture(model, [window], { skip: 0, importance: true });
  const asked = Array.from({ length: 64 }, (_, i) => Math.floor((i + 0.5) * 600 / 64));
  assert(model.prefillPlan(600).rows < 600);
  const { values } = importance(model, window, layer, asked), mean = values.reduce((s, x) => s + x, 0) / values.length;
  const exact = values.map((x) => Math.max(x / mean, 0.01));
  assertEquals(exact.length, 600 * kvHeads);
  assertAllClose(captured.layers[layer].values.importance(), exact, { relative: 1e-5 });
});

test("a scheme with importance weights its centroids, and needs them captured", { skip: slow }, async () => {
  using opened = await openEmbedded();
  const { device, model } = opened, { kvHeads, headDim } = model.cacheShape, config = kvConfig("vq1"), layer = 4;
  using activations = await Activations.capture(model, windows.slice(1), { importance: true });
  const training = { iterations: 6 };
  for (const change of [{ codebooks: "head" }, { codebooks: "head", tokenScale: true }, {}] as const) {
    const scheme = paperWith(change);
    const [plain, weighted] = [
      await train(device, activations, config, scheme, training),
      await train(device, activations, config, { ...scheme, importance: true }, training),
    ];
    const { subDim, bits } = config.values, words = 2 ** bits, parts = headDim / subDim;
    const importance = activations.layers[layer].values.importance(), rows = activations.layers[layer].values.rows();
    /** Mean squared distance of the values to their nearest codewords, each token counting as much as `weight` says. */
    const distortion = ({ values }: typeof plain, weight: (vector: number) => number) => {
      const { codebook } = values.layers[layer];
      let sum = 0, total = 0;
      for (let vector = 0; vector < activations.tokens * kvHeads; vector++) {
        const own = row(rows, vector, headDim), book = values.codebooks === "head" ? vector % kvHeads : 0;
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
    const name = JSON.stringify(change), [even, counted] = [() => 1, (vector: number) => importance[vector]];
    const [a, b] = [distortion(plain, counted), distortion(weighted, counted)];
    assert(b < a, `${name}: weighted distortion ${b} with importance, ${a} without`);
    const [c, d] = [distortion(plain, even), distortion(weighted, even)];
    assert(c < d, `${name}: distortion ${d} with importance, ${c} without`);
  }
  using without = await Activations.capture(model, [windows[0].subarray(0, 300)]);
  await assertRejects(
    () => train(device, without, config, { ...SCHEMES.vecinfer, importance: true }),
    RangeError,
    "importance was not captured",
  );
});

test("moments of queries count each query as the tokens that it looks at do, without the newest, against float64", async () => {
  using opened = await openEmbedded();
  const { model } = opened, { kvHeads, headDim, heads } = model.config, layer = 3, skip = 4, window = 24;
  const tokens = windows[0].subarray(0, 60), asked = Array.from({ length: 60 }, (_, i) => i), group = heads / kvHeads;
  using captured = await Activations.capture(model, [tokens], { skip, window, importance: true });
  const { queries } = prompted(model, tokens, layer), size = headDim * headDim;
  const sums = importance(model, tokens, layer, asked, { skip, window });
  const found = captured.layers[layer].weightedMoments(), exact = new Float64Array(kvHeads * size);
  const plain = new Float64Array(kvHeads * size), count = Math.ceil(60 / 8) * group;
  for (let t = 0; t < 60; t++) {
    for (let h = 0; h < heads; h++) {
      const q = row(queries, t * heads + h, headDim), to = Math.floor(h / group) * size;
      q.forEach((a, i) =>
        q.forEach((b, j) => {
          exact[to + i * headDim + j] += sums.queries[t * heads + h] * a * b;
          if (t % 8 === 0) plain[to + i * headDim + j] += a * b / count;
        })
      );
    }
  }
  const most = (x: Float64Array) => x.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
  assert(most(exact) > 0);
  assertAllClose(found, exact, { absolute: 1e-5 * most(exact) }, "weighted");
  assertAllClose(captured.layers[layer].queryMoments, plain, { absolute: 1e-5 * most(plain) }, "plain");
  const kept = [...sums.values.subarray(skip * kvHeads)], mean = kept.reduce((total, x) => total + x, 0) / kept.length;
  assertAllClose(captured.layers[layer].values.importance(), kept.map((x) => Math.max(x / mean, 0.01)), {
    relative: 1e-5,
  });
});

test(
  "a fitted scheme has an f16 matrix and a codebook a KV head, and codes cost less by it",
  { skip: slow },
  async () => {
    using opened = await openEmbedded();
    const { device, model } = opened, { kvHeads, headDim } = model.cacheShape, config = kvConfig("vq2"), layer = 4;
    using activations = await Activations.capture(model, windows, { importance: true });
    const heads = paperWith({ codebooks: "head" }), fitted = { ...heads.keys, transform: "fitted" } as const;
    const made = await train(device, activations, config, { ...heads, keys: fitted }, { iterations: 4 });
    const { matrix, codebook } = made.keys.layers[layer];
    assertEquals([matrix!.length, codebook.length], [kvHeads * headDim * headDim, kvHeads * 256 * 4]);
    assertEquals(matrix, Float32Array.from(Float16Array.from(matrix!)));
    assertEquals([made.values.layers[layer].matrix, made.values.transform, made.keys.transform], [
      undefined,
      "none",
      "fitted",
    ]);
    const usual = await train(device, activations, config, heads, { iterations: 4 });
    const costs = [made, usual].map((calibration) => {
      using cache = new KvCache(device, model.cacheShape, { ...config, sinks: 0, window: 0, recent: 0 }, calibration, {
        context: 1024,
      });
      using sequence = cache.sequence();
      const count = 256,
        width = kvHeads * headDim,
        all = activations.layers[layer].keys.rows().subarray(0, count * width);
      sequence.extend(count);
      using keys = Tensor.from(device, all, [count, width]);
      using values = Tensor.zeros(device, "f32", [count, width]);
      using slots = Tensor.from(device, new Int32Array(count).fill(sequence.slot));
      using positions = Tensor.from(device, Int32Array.from({ length: count }, (_, i) => i));
      cache.layers[layer].quantize(keys, values, slots, positions);
      using back = Tensor.empty(device, "f32", [count, width]);
      cache.layers[layer].dequantize(back, values, sequence.slot, 0, count);
      const found = back.read<Float32Array>();
      let cost = 0;
      for (let vector = 0; vector < count * kvHeads; vector++) {
        const e = row(found, vector, headDim).map((x, i) => x - all[vector * headDim + i]);
        const at = vector % kvHeads * headDim * headDim;
        e.forEach((a, i) =>
          e.forEach((b, j) => cost += a * b * activations.layers[layer].queryMoments[at + i * headDim + j])
        );
      }
      return cost;
    });
    assert(
      costs[0] < 0.7 * costs[1],
      `squared error of the scores ${costs[0]} fitted, ${costs[1]} by smooth and Hadamard`,
    );
    using without = await Activations.capture(model, [windows[0].subarray(0, 300)]);
    await assertRejects(
      () => train(device, without, config, paperWith({ transform: "fitted" })),
      RangeError,
      "importance was not captured",
    );
  },
);
