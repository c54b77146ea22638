// Sink logits, soft caps and sliding windows of attention, in every head dimension, against float64.
import { assert, assertEquals, assertThrows } from "@std/assert";
import { type Device, VecInferError } from "../../lib/device.ts";
import { attention, attentionPrefill } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { type LayerShape, type Side, TestLayer } from "../support/layer.ts";
import { Random } from "../support/random.ts";

const plain: Side = { subDim: 1, bits: 16 };
const headDims = [64, 80, 96, 112, 128, 192, 256];

/** What becomes of scores. */
interface Scoring {
  scale: number;
  cap: number;
  /** Logits of the sinks, a query head. */
  sinks: Float32Array | null;
}

/** Tokens of one slot: keys and values [tokens, kvHeads, headDim]. */
interface Tokens {
  keys: Float32Array;
  values: Float32Array;
}

/** Output of one row of queries [heads, headDim] that sees tokens from `begin` up to but not `end`, in float64. */
function expectedRow(
  q: Float32Array,
  { keys, values }: Tokens,
  [begin, end]: readonly [number, number],
  kvHeads: number,
  headDim: number,
  { scale, cap, sinks }: Scoring,
): Float64Array {
  const heads = q.length / headDim, out = new Float64Array(q.length), scores = new Float64Array(end - begin);
  for (let h = 0; h < heads; h++) {
    const head = Math.floor(h / (heads / kvHeads)), own = q.subarray(h * headDim, (h + 1) * headDim);
    const sink = sinks === null ? -Infinity : sinks[h];
    let most = sink, total = 0;
    for (let j = begin; j < end; j++) {
      const at = (j * kvHeads + head) * headDim;
      let score = 0;
      for (let d = 0; d < headDim; d++) score += own[d] * keys[at + d];
      score *= scale;
      scores[j - begin] = cap > 0 ? cap * Math.tanh(score / cap) : score;
      most = Math.max(most, scores[j - begin]);
    }
    for (let j = begin; j < end; j++) {
      const at = (j * kvHeads + head) * headDim, weight = Math.exp(scores[j - begin] - most);
      total += weight;
      for (let d = 0; d < headDim; d++) out[h * headDim + d] += weight * values[at + d];
    }
    total += Math.exp(sink - most);
    for (let d = 0; d < headDim; d++) out[h * headDim + d] /= total;
  }
  return out;
}

/** Numbers that bf16 holds, so that caches and references have the same. */
function randomTokens(random: Random, count: number, width: number): Tokens {
  const numbers = (): Float32Array => {
    const out = random.normals(count * width), bits = new Uint32Array(out.buffer);
    for (let i = 0; i < bits.length; i++) bits[i] &= 0xffff0000;
    return out;
  };
  return { keys: numbers(), values: numbers() };
}

function randomScoring(random: Random, heads: number, headDim: number, sinks: boolean, cap: boolean): Scoring {
  return {
    scale: (0.5 + random.uniform()) / Math.sqrt(headDim),
    cap: cap ? 0.5 + 2 * random.uniform() : 0,
    sinks: sinks ? random.normals(heads, 3) : null,
  };
}

/** Rows of a slot's tokens. */
function rowsOf(tokens: Tokens, first: number, count: number, width: number): Tokens {
  const cut = (x: Float32Array) => x.subarray(first * width, (first + count) * width);
  return { keys: cut(tokens.keys), values: cut(tokens.values) };
}

/** What `attention` gives for rows [slot, position] and queries that lie `stride` elements apart. */
function decode(
  layer: TestLayer,
  at: readonly (readonly [number, number])[],
  q: Float32Array,
  heads: number,
  scoring: Scoring,
): Float32Array {
  const { device } = layer, stride = q.length / at.length;
  using queries = Tensor.from(device, q, [at.length, stride]);
  using slots = Tensor.from(device, Int32Array.from(at, ([slot]) => slot));
  using positions = Tensor.from(device, Int32Array.from(at, ([_, position]) => position));
  using sinkLogits = scoring.sinks === null ? null : Tensor.from(device, scoring.sinks);
  using out = Tensor.empty(device, "f32", [at.length, heads * layer.shape.headDim]).fill(NaN);
  const { scale, cap: softCap } = scoring;
  attention(out, queries, layer.native, slots, positions, { heads, scale, softCap, sinkLogits });
  return out.read();
}

/** Bounds for outputs of N(0, 1) values. CUDA's products are of bf16 numbers. */
function close(device: Device, cuda = 4e-3): { absolute: number } {
  return { absolute: device.name === "cpu" ? 2e-5 : cuda };
}

for (const headDim of headDims) {
  testOnDevices(`attention with sink logits, soft caps and windows, headDim ${headDim}, fresh seed`, (device) => {
    const seed = Math.floor(Math.random() * 2 ** 31), random = new Random(seed);
    for (let group = 1, turn = random.integer(0, 7); group <= 16; group++, turn++) {
      const [sinks, cap, sliding] = [turn & 1, turn & 2, turn & 4].map(Boolean);
      const kvHeads = group < 9 ? random.integer(1, 2) : 1, heads = kvHeads * group, width = kvHeads * headDim;
      const window = random.integer(1, 40), recent = window + random.integer(0, 30);
      const shape: LayerShape = sliding
        ? { kvHeads, headDim, slots: 2, maxPages: 0, sinks: 0, window, recent }
        : { kvHeads, headDim, slots: 2, maxPages: 2, sinks: random.integer(0, 3), window, recent };
      using layer = new TestLayer(device, random, plain, plain, shape, 2);
      const tokens = [0, 1].map((slot) => {
        const own = randomTokens(random, random.integer(1, 70), width);
        layer.store(slot, own.keys, own.values, random.integer(1, recent));
        return own;
      });
      const newest = tokens.map(({ keys }) => keys.length / width - 1);
      const earlier = Math.max(0, newest[1] - random.integer(0, recent - window));
      const at = [[0, newest[0]], [1, newest[1]], [0, -1], [1, earlier]] as const;
      const stride = heads * headDim + 4, q = random.normals(at.length * stride);
      const scoring = randomScoring(random, heads, headDim, sinks, cap);
      const name = `seed ${seed}, group ${group}, sinks ${sinks}, cap ${cap}, window ${sliding ? window : "none"}`;
      const expected = at.flatMap(([slot, position], r) => {
        const own = q.subarray(r * stride, r * stride + heads * headDim);
        const range = [sliding ? Math.max(0, position + 1 - window) : 0, position + 1] as const;
        if (position < 0) return Array.from(own, () => 0);
        return [...expectedRow(own, tokens[slot], range, kvHeads, headDim, scoring)];
      });
      assertAllClose(decode(layer, at, q, heads, scoring), expected, close(device), name);
    }
  });

  testOnDevices(
    `attentionPrefill with sink logits, soft caps and windows, headDim ${headDim}, fresh seed`,
    (device) => {
      const seed = Math.floor(Math.random() * 2 ** 31), random = new Random(seed);
      for (let group = 1, turn = random.integer(0, 7); group <= 16; group++, turn++) {
        const [sinks, cap, sliding] = [turn & 1, turn & 2, turn & 4].map(Boolean);
        const kvHeads = group < 5 ? random.integer(1, 3) : 1, heads = kvHeads * group, width = kvHeads * headDim;
        const past = random.integer(0, 1) * random.integer(1, 90), rows = random.integer(1, group < 5 ? 70 : 12);
        const first = random.integer(0, 60), fresh = first + rows;
        const window = random.integer(1, 50), recent = window + random.integer(0, 9);
        // A layer that keeps all its tokens may be read through a window too.
        const ring = sliding && random.uniform() < 0.7;
        const shape: LayerShape = ring
          ? { kvHeads, headDim, slots: 2, maxPages: 0, sinks: 0, window, recent }
          : { kvHeads, headDim, slots: 2, maxPages: 2, sinks: random.integer(0, 3), window, recent };
        using layer = new TestLayer(device, random, plain, plain, shape, 2);
        const all = randomTokens(random, past + fresh, width),
          before = rowsOf(all, 0, past, width),
          own = rowsOf(all, past, fresh, width);
        if (past > 0) layer.store(1, before.keys, before.values, past);
        const scoring = randomScoring(random, heads, headDim, sinks, cap), q = random.normals(rows * heads * headDim);
        using queries = Tensor.from(device, q, [rows, heads * headDim]);
        using keys = Tensor.from(device, own.keys, [fresh, width], "bf16");
        using values = Tensor.from(device, own.values, [fresh, width], "bf16");
        using sinkLogits = scoring.sinks === null ? null : Tensor.from(device, scoring.sinks);
        using out = Tensor.empty(device, "f32", [rows, heads * headDim]);
        attentionPrefill(out, queries, keys, values, {
          headDim,
          past,
          first,
          slot: 1,
          layer: past > 0 ? layer.native : null,
          scale: scoring.scale,
          softCap: scoring.cap,
          sinkLogits,
          slidingWindow: sliding ? window : 0,
        });
        const expected = Array.from({ length: rows }, (_, r) => {
          const end = past + first + r + 1, range = [sliding ? Math.max(0, end - window) : 0, end] as const;
          const row = q.subarray(r * heads * headDim, (r + 1) * heads * headDim);
          return [...expectedRow(row, all, range, kvHeads, headDim, scoring)];
        }).flat();
        const name = `seed ${seed}, group ${group}, ${past} + ${first} + ${rows}, sinks ${sinks}, cap ${cap}, window ${
          sliding ? window : "none"
        }, ${ring ? "ring" : "pages"}`;
        assertAllClose(out.read(), expected, close(device, 1e-2), name);
      }
    },
  );
}

/** What a query at `position` reads: the first and newest tokens exactly, the others as the pages have them. */
function mixed(layer: TestLayer, slot: number, tokens: Tokens, position: number, exactFrom: number): Tokens {
  const { kvHeads, headDim, sinks, window } = layer.shape, width = kvHeads * headDim;
  const out = layer.pages(slot, 0, position + 1);
  for (let j = 0; j <= position; j++) {
    if (j >= sinks && (position - j >= window || j < exactFrom)) continue;
    const own = rowsOf(tokens, j, 1, width);
    out.keys.set(own.keys, j * width);
    out.values.set(own.values, j * width);
  }
  return out;
}

testOnDevices("attention over codes with sink logits, soft caps and windows, fresh seed", (device) => {
  const seed = Math.floor(Math.random() * 2 ** 31), random = new Random(seed);
  for (const headDim of [64, 256]) {
    for (const [subDim, bits] of [[4, 8], [4, 10], [8, 12], [2, 8], [4, 6]]) {
      const kvHeads = random.integer(1, 2), group = random.integer(1, 3), heads = kvHeads * group;
      const width = kvHeads * headDim, size = heads * headDim, past = random.integer(80, 140);
      const shape: LayerShape = { kvHeads, headDim, slots: 2, maxPages: 3, sinks: 3, window: 20, recent: 40 };
      using layer = new TestLayer(device, random, { subDim, bits, tokenScale: true }, { subDim, bits }, shape, 3);
      const tokens = randomTokens(random, past, width);
      layer.store(1, tokens.keys, tokens.values, past);
      const scoring = randomScoring(random, heads, headDim, true, true), exactFrom = past - shape.recent;
      const name = `seed ${seed}, d${subDim}b${bits}, headDim ${headDim}, group ${group}, past ${past}`;
      // A row alone and one of many in its slot.
      for (const rows of [1, 9]) {
        const at = Array.from({ length: rows }, (_, r) => [1, past - rows + r] as const),
          q = random.normals(rows * size);
        const expected = at.flatMap(([slot, position], r) => {
          const all = mixed(layer, slot, tokens, position, exactFrom), own = q.subarray(r * size, (r + 1) * size);
          return [...expectedRow(own, all, [0, position + 1], kvHeads, headDim, scoring)];
        });
        assertAllClose(decode(layer, at, q, heads, scoring), expected, close(device), `${name}, rows ${rows}`);
      }
      // Fresh tokens after them, which see some of them through a window.
      const before = mixed(layer, 1, tokens, past - 1, exactFrom);
      for (const rows of [3, 12]) {
        const slidingWindow = random.integer(1, past), fresh = randomTokens(random, rows, width);
        const q = random.normals(rows * size), { scale, cap: softCap } = scoring;
        using queries = Tensor.from(device, q, [rows, size]);
        using keys = Tensor.from(device, fresh.keys, [rows, width], "bf16");
        using values = Tensor.from(device, fresh.values, [rows, width], "bf16");
        using sinkLogits = Tensor.from(device, scoring.sinks!);
        using out = Tensor.empty(device, "f32", [rows, size]);
        const options = { headDim, past, slot: 1, layer: layer.native, scale, softCap, sinkLogits, slidingWindow };
        attentionPrefill(out, queries, keys, values, options);
        const join = (a: Float32Array, b: Float32Array) => Float32Array.of(...a, ...b);
        const all = { keys: join(before.keys, fresh.keys), values: join(before.values, fresh.values) };
        const expected = Array.from({ length: rows }, (_, r) => {
          const end = past + r + 1, row = q.subarray(r * size, (r + 1) * size);
          return [...expectedRow(row, all, [Math.max(0, end - slidingWindow), end], kvHeads, headDim, scoring)];
        }).flat();
        assertAllClose(out.read(), expected, close(device, 1e-2), `${name}, window ${slidingWindow}, fresh ${rows}`);
      }
    }
  }
});

testOnDevices("attention with a sliding window across chunks of 1024 positions, fresh seed", (device) => {
  const seed = Math.floor(Math.random() * 2 ** 31), random = new Random(seed);
  for (const window of [1, 64, 700, 1025]) {
    const kvHeads = 1, headDim = 64, heads = 2, count = 2100 + random.integer(0, 60);
    const shape: LayerShape = { kvHeads, headDim, slots: 2, maxPages: 0, sinks: 0, window, recent: window + 40 };
    using layer = new TestLayer(device, random, plain, plain, shape, 0);
    const tokens = randomTokens(random, count, headDim), scoring = randomScoring(random, heads, headDim, true, true);
    for (const position of [1023, 1024, 1087, 2048, count - 1]) {
      const seen = rowsOf(tokens, 0, position + 1, headDim);
      layer.exactFrom.write([0], 1);
      layer.store(1, seen.keys, seen.values, position + 1);
      const q = random.normals(2 * heads * headDim), at = [[1, position], [1, position - 39]] as const;
      const out = decode(layer, at, q, heads, scoring), size = heads * headDim;
      const name = `seed ${seed}, window ${window}, position ${position}`;
      at.forEach(([_, p], r) => {
        const own = q.subarray(r * size, (r + 1) * size);
        const expected = expectedRow(own, tokens, [Math.max(0, p + 1 - window), p + 1], 1, headDim, scoring);
        assertAllClose(out.subarray(r * size, (r + 1) * size), expected, close(device), name);
      });
      // What lies before the window is not read at all, and a row's bits are the same alone.
      if (device.name === "cpu") {
        for (let r = 0; r < at.length; r++) {
          const alone = decode(layer, [at[r]], q.subarray(r * size, (r + 1) * size), heads, scoring);
          assertEquals(alone, out.subarray(r * size, (r + 1) * size), name);
        }
      }
    }
  }
});

testOnDevices(
  "attentionPrefill with a window: a row's bits don't depend on the rows beside it, fresh seed",
  (device) => {
    const seed = Math.floor(Math.random() * 2 ** 31), random = new Random(seed);
    for (const headDim of headDims) {
      const kvHeads = 2, group = random.integer(1, 8), heads = kvHeads * group, width = kvHeads * headDim;
      const past = random.integer(1, 70), fresh = 150, window = random.integer(1, 100);
      const shape: LayerShape = { kvHeads, headDim, slots: 1, maxPages: 0, sinks: 0, window, recent: window };
      using layer = new TestLayer(device, random, plain, plain, shape, 0);
      const before = randomTokens(random, past, width), own = randomTokens(random, fresh, width);
      layer.store(0, before.keys, before.values, past);
      const scoring = randomScoring(random, heads, headDim, true, true), row = heads * headDim;
      using keys = Tensor.from(device, own.keys, [fresh, width], "bf16");
      using values = Tensor.from(device, own.values, [fresh, width], "bf16");
      using sinkLogits = Tensor.from(device, scoring.sinks!);
      const q = random.normals(fresh * row);
      const rows = (first: number, count: number): Float32Array => {
        using queries = Tensor.from(device, q.subarray(first * row, (first + count) * row), [count, row]);
        using out = Tensor.empty(device, "f32", [count, row]);
        const { scale, cap: softCap } = scoring,
          options = { headDim, past, slot: 0, layer: layer.native, scale, softCap };
        attentionPrefill(out, queries, keys, values, { ...options, first, sinkLogits, slidingWindow: window });
        return out.read();
      };
      const all = rows(0, fresh);
      for (const [first, count] of [[0, 1], [1, 62], [63, 2], [65, 84], [149, 1]]) {
        const name = `seed ${seed}, headDim ${headDim}, rows ${first} + ${count}`;
        assertEquals(rows(first, count), all.slice(first * row, (first + count) * row), name);
      }
    }
  },
);

testOnDevices("attention with sink logits far above and below the scores, seed 47", (device) => {
  const random = new Random(47), headDim = 64;
  const shape: LayerShape = { kvHeads: 1, headDim, slots: 1, maxPages: 1, sinks: 0, window: 4, recent: 4 };
  using layer = new TestLayer(device, random, plain, plain, shape, 1);
  const tokens = randomTokens(random, 20, headDim), q = random.normals(4 * headDim);
  layer.store(0, tokens.keys, tokens.values, 1);
  const sinks = Float32Array.of(-3e38, 1000, 3e38, -Infinity), scoring = { scale: 0.1, cap: 0, sinks };
  const found = decode(layer, [[0, 19]], q, 4, scoring);
  assertAllClose(
    found,
    expectedRow(q, tokens, [0, 20], 1, headDim, { ...scoring, sinks: Float32Array.of(-1e30, 1000, 1e30, -1e30) }),
    close(device),
  );
  // Sinks that are none leave the bits as they are.
  const without = decode(layer, [[0, 19]], q, 4, { ...scoring, sinks: null });
  assertEquals(found.subarray(0, headDim), without.subarray(0, headDim));
  assertEquals(found.subarray(3 * headDim), without.subarray(3 * headDim));
});

testOnDevices(
  "a layer with a sliding window reads nothing before exactFrom, and names what it refuses, seed 48",
  (device) => {
    const random = new Random(48), headDim = 64, window = 6;
    const shape: LayerShape = { kvHeads: 1, headDim, slots: 2, maxPages: 0, sinks: 0, window, recent: 8 };
    using layer = new TestLayer(device, random, plain, plain, shape, 0);
    const tokens = randomTokens(random, 9, headDim), scoring = { scale: 0.2, cap: 0, sinks: null };
    // Positions 0 to 4 were never stored.
    layer.exactFrom.write([5], 0);
    layer.store(0, tokens.keys, tokens.values, 3);
    const q = random.normals(headDim);
    assertAllClose(
      decode(layer, [[0, 8]], q, 1, scoring),
      expectedRow(q, tokens, [5, 9], 1, headDim, scoring),
      close(device),
    );
    // A row that sees nothing is zeros.
    assertEquals(decode(layer, [[0, 3]], q, 1, scoring), new Float32Array(headDim));
    using x = Tensor.zeros(device, "f32", [1, headDim]);
    using slots = Tensor.zeros(device, "i32", [1]);
    using sinkLogits = Tensor.zeros(device, "f32", [2]);
    const refused = (run: () => void, message: string) => assertThrows(run, VecInferError, message);
    refused(
      () => layer.native.dequantize(x, x, 0, 0),
      "expected one with pages, found one with a sliding window, which has none",
    );
    refused(
      () => attention(x, x, layer.native, slots, slots, { sinkLogits }),
      "attention: sinkLogits: expected f32 of 1 elements",
    );
    refused(
      () => attention(x, x, layer.native, slots, slots, { softCap: -1 }),
      "soft_cap is -1, not 0 or a positive number",
    );
    refused(
      () => attentionPrefill(x, x, x, x, { headDim, past: 1, layer: layer.native, slidingWindow: 5 }),
      "sliding_window is 5, the layer's is 6",
    );
    refused(
      () => attentionPrefill(x, x, x, x, { headDim, slidingWindow: -1 }),
      "attentionPrefill: slidingWindow: expected",
    );
    const coded: Side = { subDim: 4, bits: 8 };
    refused(() => new TestLayer(device, random, coded, plain, shape, 0), "keeps bf16, not codes");
    refused(
      () => new TestLayer(device, random, plain, plain, { ...shape, window: 0 }, 0),
      "window is 0, not at least 1",
    );
    assert(layer.native.maxPages === 0);
  },
);
