import { assert, assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { expertLinear, expertSum, linear, pack, route, type RouteMethod } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { blockWeights, randomBlocks } from "../support/blocks.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { allBf16, dot, logSoftmax, row } from "../support/reference.ts";

const seed = Date.now() % 1e6;

/** The choice and its weights in float64. */
function chosen(logits: number[], method: RouteMethod, top: number): { experts: number[]; weights: number[] } {
  const rank = (x: number): number => Number.isNaN(x) ? -Infinity : x;
  const experts = logits.map((_, e) => e)
    .sort((a, b) => rank(logits[a]) === rank(logits[b]) ? a - b : rank(logits[b]) - rank(logits[a]))
    .slice(0, top);
  const all = logSoftmax(logits).map(Math.exp), own = experts.map((e) => all[e]);
  if (method === "softmax") return { experts, weights: own };
  const sum = own.reduce((a, b) => a + b);
  return { experts, weights: own.map((w) => w / sum) };
}

testOnDevices(`route chooses the largest logits, the lowest index among equals, seed ${seed}`, (device) => {
  const random = new Random(seed);
  for (
    const [rows, expertCount, top] of [[1, 4, 2], [5, 8, 8], [9, 32, 4], [33, 128, 8], [3, 100, 1], [2, 1024, 32], [
      4,
      1,
      1,
    ]]
  ) {
    // Whole numbers have equals.
    for (
      const values of [random.normals(rows * expertCount, 2), random.normals(rows * expertCount, 3).map(Math.round)]
    ) {
      using logits = Tensor.from(device, values, [rows, expertCount]);
      using experts = Tensor.empty(device, "i32", [rows, top]);
      using weights = Tensor.empty(device, "f32", [rows, top]);
      for (const method of ["softmax", "normalized", "top softmax"] as const) {
        route(experts, weights, logits, { method });
        const wanted = Array.from({ length: rows }, (_, r) => chosen(row(logits.read(), r, expertCount), method, top));
        const name = `${method} ${rows} of ${expertCount}, ${top}`;
        assertEquals([...experts.read()], wanted.flatMap((w) => w.experts), name);
        assertAllClose(weights.read(), wanted.flatMap((w) => w.weights), { absolute: 1e-7, relative: 2e-6 }, name);
      }
    }
  }
});

testOnDevices("route: large logits, infinities and NaN, and only the rows that are asked for", (device) => {
  const values = [1000, 999, -1000, 0, -Infinity, 3, -Infinity, 3, NaN, 1, 2, NaN, NaN, NaN, NaN, NaN];
  using logits = Tensor.from(device, values, [4, 4]);
  using experts = Tensor.from(device, new Int32Array(12).fill(-7), [4, 3]);
  using weights = Tensor.zeros(device, "f32", [4, 3]);
  const e = Math.E, top = 1 / (1 + 1 / e);
  route(experts, weights, logits, { method: "top softmax", rows: 2 });
  assertEquals([...experts.read()], [0, 1, 3, 1, 3, 0, -7, -7, -7, -7, -7, -7]);
  assertAllClose(weights.read(), [top, 1 - top, 0, 0.5, 0.5, 0, 0, 0, 0, 0, 0, 0], { absolute: 1e-6 });
  route(experts, weights, logits);
  assertEquals([...experts.read()].slice(6), [2, 1, 0, 0, 1, 2], "NaN is the least");
  assert([...weights.read()].slice(6).every(Number.isNaN), "a sum over NaN is NaN");
});

/** How the experts of a test's rows are chosen. */
type Choice = "distinct" | "one" | "few";

function choices(random: Random, rows: number, expertCount: number, top: number, choice: Choice): number[] {
  return Array.from({ length: rows }, () => {
    if (choice === "one") return Array.from({ length: top }, () => expertCount - 1);
    if (choice === "few") return Array.from({ length: top }, () => random.integer(0, 1) * (expertCount - 1));
    const order = Array.from(random.normals(expertCount), (x, e) => ({ x, e })).sort((a, b) => a.x - b.x);
    return order.slice(0, top).map(({ e }) => e);
  }).flat();
}

/** Rows, experts, choices a row, outputs and inputs: for few rows and for prompts, sizes that tiles fit and that they don't. */
const shapes: readonly [number, number, number, number, number][] = [
  [1, 4, 2, 16, 64],
  [1, 128, 8, 24, 40],
  [3, 8, 1, 5, 131],
  [8, 16, 4, 33, 96],
  [9, 4, 2, 17, 24],
  [20, 128, 8, 40, 72],
  [70, 8, 3, 130, 67],
  [300, 5, 2, 20, 136],
];

testOnDevices(`expertLinear against float64, seed ${seed}`, (device) => {
  const random = new Random(seed);
  for (const [rows, expertCount, top, outs, ins] of shapes) {
    const close = { absolute: 1e-5 * Math.sqrt(ins) };
    const matrix = allBf16(random.normals(expertCount * outs * ins)),
      offsets = allBf16(random.normals(expertCount * outs));
    using weight = Tensor.from(device, matrix, [expertCount, outs, ins], "bf16");
    using bias = Tensor.from(device, offsets, [expertCount, outs], "bf16");
    using out = Tensor.empty(device, "f32", [rows, top, outs]);
    for (const choice of ["distinct", "one", "few"] as const) {
      const ids = choices(random, rows, expertCount, top, choice);
      using experts = Tensor.from(device, Int32Array.from(ids), [rows, top]);
      for (const xTop of [1, top]) {
        const values = random.normals(rows * xTop * ins);
        using x = Tensor.from(device, values, xTop === 1 ? [rows, ins] : [rows, top, ins]);
        const product = (count: number, biased: boolean): number[] => {
          // The CUDA library rounds more than 8 rows to bf16 for its tensor cores; the weights are bf16 already.
          const given = device.name === "cpu" || count <= 8 ? values : allBf16(values);
          return ids.flatMap((e, pair) => {
            const own = row(given, xTop === 1 ? Math.floor(pair / top) : pair, ins);
            return Array.from(
              { length: outs },
              (_, o) => dot(own, row(matrix, e * outs + o, ins)) + (biased ? offsets[e * outs + o] : 0),
            );
          });
        };
        const name = `${choice} [${rows}, ${top} of ${expertCount}, ${outs}, ${ins}], x of ${xTop}`;
        expertLinear(out, x, weight, experts);
        assertAllClose(out.read(), product(rows, false), close, name);
        out.fill(7);
        const part = Math.ceil(rows / 2);
        expertLinear(out, x, weight, experts, { bias, rows: part });
        const partly = product(part, true).map((y, i) => i < part * top * outs ? y : 7);
        assertAllClose(out.read(), partly, close, `${name}, ${part} rows with bias`);
      }
    }
  }
});

for (const type of ["Q8_0", "Q4_0", "Q4_1"] as const) {
  const dtype = type.toLowerCase() as "q8_0" | "q4_0" | "q4_1";
  testOnDevices(`expertLinear with ${type} weights is what linear makes of each expert, seed ${seed}`, (device) => {
    const random = new Random(seed);
    for (
      const [rows, expertCount, top, outs, ins] of [[1, 4, 2, 16, 64], [5, 16, 3, 48, 96], [8, 8, 1, 144, 32], [
        40,
        6,
        2,
        160,
        160,
      ], [150, 4, 2, 32, 64]]
    ) {
      const blocks = randomBlocks(random, type, expertCount * outs * ins), matrix = blockWeights(type, blocks);
      const offsets = allBf16(random.normals(expertCount * outs)), values = random.normals(rows * ins);
      using bytes = Tensor.from(device, blocks);
      using weight = Tensor.empty(device, dtype, [expertCount * outs, ins]);
      using x = Tensor.from(device, values, [rows, ins]);
      using bias = Tensor.from(device, offsets, [expertCount, outs], "bf16");
      using out = Tensor.empty(device, "f32", [rows, top, outs]);
      using alone = Tensor.empty(device, "f32", [1, outs]);
      pack(weight, bytes);
      for (const choice of ["distinct", "few"] as const) {
        const ids = choices(random, rows, expertCount, top, choice);
        using experts = Tensor.from(device, Int32Array.from(ids), [rows, top]);
        expertLinear(out, x, weight, experts, { bias });
        const found = out.read<Float32Array>(), name = `${choice} [${rows}, ${top} of ${expertCount}, ${outs}, ${ins}]`;
        for (let pair = 0; pair < ids.length; pair++) {
          const r = Math.floor(pair / top),
            e = ids[pair],
            own = row(values, r, ins),
            most = Math.max(...own.map(Math.abs));
          for (let o = 0; o < outs; o++) {
            // Inputs of 8 bits are within most / 254; on CUDA prompts round inputs and weights to bf16.
            const w = row(matrix, e * outs + o, ins), exact = dot(own, w) + offsets[e * outs + o];
            const bound = 1e-5 + w.reduce((sum, value) => sum + Math.abs(value), 0) * most / 126;
            const error = Math.abs(found[pair * outs + o] - exact);
            assert(error <= bound, `${name} pair ${pair}, output ${o}: ${error} > ${bound}`);
          }
          if (pair % 7 || (device.name !== "cpu" && rows > 8)) continue;
          linear(alone, x.rows(r, 1), weight.rows(e * outs, outs), { bias: bias.rows(e, 1) });
          const close = device.name === "cpu" ? {} : { absolute: 1e-4 };
          assertAllClose(row(found, pair, outs), alone.read(), close, `${name} pair ${pair} by linear`);
        }
      }
    }
  });
}

testOnDevices(`a row of expertLinear has the same bits alone and among others, seed ${seed}`, (device) => {
  const random = new Random(seed), expertCount = 6, top = 3, outs = 78, ins = 264;
  const rows = device.name === "cpu" ? 60 : 8;
  using x = Tensor.from(device, random.normals(rows * ins), [rows, ins]);
  using weight = Tensor.from(device, random.normals(expertCount * outs * ins), [expertCount, outs, ins], "bf16");
  using experts = Tensor.from(device, Int32Array.from(choices(random, rows, expertCount, top, "distinct")), [
    rows,
    top,
  ]);
  using out = Tensor.empty(device, "f32", [rows, top, outs]);
  using alone = Tensor.empty(device, "f32", [1, top, outs]);
  expertLinear(out, x, weight, experts);
  const all = out.read<Float32Array>();
  for (let r = 0; r < rows; r++) {
    expertLinear(alone, x.rows(r, 1), weight, experts.rows(r, 1));
    assertEquals([...alone.read()], row(all, r, top * outs), `row ${r}`);
  }
});

testOnDevices("an expert that does not exist gives NaN, for its own row and choice alone", (device) => {
  for (const rows of [2, 40]) {
    const ids = new Int32Array(rows * 2).fill(1);
    ids[1] = 3, ids[2] = -1;
    using x = Tensor.from(device, new Float32Array(rows * 8).fill(1), [rows, 8]);
    using weight = Tensor.from(device, new Float32Array(3 * 4 * 8).fill(1), [3, 4, 8], "bf16");
    using experts = Tensor.from(device, ids, [rows, 2]);
    using out = Tensor.empty(device, "f32", [rows, 2, 4]);
    expertLinear(out, x, weight, experts);
    assertEquals(
      [...out.read()],
      Array.from({ length: rows * 8 }, (_, i) => i >= 4 && i < 12 ? NaN : 8),
      `${rows} rows`,
    );
  }
});

testOnDevices(`expertSum, seed ${seed}`, (device) => {
  const random = new Random(seed);
  for (const [rows, top, width] of [[1, 8, 64], [3, 1, 5], [17, 4, 130], [70, 8, 33]]) {
    const before = random.normals(rows * width),
      values = random.normals(rows * top * width),
      shares = random.normals(rows * top);
    using residual = Tensor.from(device, before, [rows, width]);
    using x = Tensor.from(device, values, [rows, top, width]);
    using weights = Tensor.from(device, shares, [rows, top]);
    expertSum(residual, x, weights);
    const wanted = Array.from(before, (value, i) => {
      const r = Math.floor(i / width), of = (k: number): number => values[(r * top + k) * width + i % width];
      return value + dot(row(shares, r, top), Array.from({ length: top }, (_, k) => of(k)));
    });
    assertAllClose(residual.read(), wanted, { absolute: 1e-5 }, `[${rows}, ${top}, ${width}]`);
  }
});

testOnDevices(`a recorded mixture of experts follows its inputs, seed ${seed}`, (device) => {
  const random = new Random(seed), expertCount = 8, top = 2, outs = 24, ins = 32;
  for (const rows of [1, 30]) {
    using x = Tensor.empty(device, "f32", [rows, ins]);
    using router = Tensor.from(device, random.normals(expertCount * ins), [expertCount, ins], "bf16");
    using weight = Tensor.from(device, random.normals(expertCount * outs * ins), [expertCount, outs, ins], "bf16");
    using logits = Tensor.empty(device, "f32", [rows, expertCount]);
    using experts = Tensor.empty(device, "i32", [rows, top]);
    using weights = Tensor.empty(device, "f32", [rows, top]);
    using products = Tensor.empty(device, "f32", [rows, top, outs]);
    using residual = Tensor.zeros(device, "f32", [rows, outs]);
    const step = (): void => {
      linear(logits, x, router);
      route(experts, weights, logits, { method: "normalized" });
      expertLinear(products, x, weight, experts);
      expertSum(residual, products, weights);
    };
    x.write(random.normals(rows * ins));
    step(); // the workspace does not grow while recording
    using graph = device.capture(step);
    for (let round = 0; round < 3; round++) {
      x.write(random.normals(rows * ins));
      residual.fill(0);
      step();
      const wanted = residual.read();
      residual.fill(0);
      graph.launch();
      assertEquals(residual.read(), wanted, `${rows} rows, round ${round}`);
    }
  }
});

testOnDevices("experts name what they refuse", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  using weight = Tensor.zeros(device, "bf16", [3, 4, 8]);
  using flat = Tensor.zeros(device, "bf16", [12, 8]);
  using packed = Tensor.empty(device, "q8_0", [3 * 16, 32]);
  using odd = Tensor.empty(device, "q8_0", [3 * 20, 32]);
  using experts = Tensor.zeros(device, "i32", [2, 2]);
  using out = Tensor.zeros(device, "f32", [2, 2, 4]);
  using wide = Tensor.zeros(device, "f32", [2, 2, 20]);
  using blocks = Tensor.zeros(device, "f32", [2, 32]);
  using logits = Tensor.zeros(device, "f32", [2, 1]);
  using weights = Tensor.zeros(device, "f32", [2, 2]);
  using bias = Tensor.zeros(device, "bf16", [3, 8]);
  const refuses = (run: () => void, message: string): void => void assertThrows(run, VecInferError, message);
  refuses(() => expertLinear(out, x, flat, experts), "expertLinear: weight: expected bf16 [experts, outputs, inputs]");
  refuses(() => expertLinear(wide, x, weight, experts), "expertLinear: out: expected f32 [2, 8]");
  refuses(() => expertLinear(out, weights, weight, experts), "expertLinear: x: expected f32 [2, 16]");
  refuses(() => expertLinear(out, x, weight, x), "expertLinear: experts: expected i32");
  refuses(() => expertLinear(out, x, weight, experts, { bias }), "expertLinear: bias: expected bf16 of 12");
  refuses(
    () => expertLinear(wide, blocks, packed, experts),
    "expertLinear: weight: expected whole matrices of 20 outputs",
  );
  refuses(() => expertLinear(wide, blocks, odd, experts), "out_features is 20, not a multiple of 16");
  refuses(() => route(experts, weights, logits), "top is 2, not in 1..1");
  refuses(
    () => route(experts, weights, x, { method: "sigmoid" as never }),
    "route: method: expected one of softmax,normalized,top softmax",
  );
  refuses(() => route(experts, x, x), "route: weights: expected f32 [2, 2]");
  refuses(() => expertSum(x, out, weights), "expertSum: x: expected f32 [2, 16]");
});
