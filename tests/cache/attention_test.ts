import { assertEquals, assertMatch } from "@std/assert";
import { test } from "node:test";
import { describeAttention } from "../../lib/cache/attention.ts";
import { FORMATS, SCHEMES } from "../../lib/ops/mod.ts";

const info = { library: "vecinfer_cuda", device: "one", compute: "9.0", threads: 132, instructions: "" };
const attention = { 64: ["d4b8+d4b8"], 128: ["d4b8+d4b8", "d4b8+d8b8"] };
const shape = { layers: 3, kvHeads: 2, headDim: 128 };
const side = (name: keyof typeof FORMATS, scheme: keyof typeof SCHEMES = "vecinfer") => ({
  ...SCHEMES[scheme].keys,
  format: FORMATS[name],
});

test("layers without kernels of their own are told with their formats", () => {
  const own = { keys: side("d4b8"), values: side("d4b8") };
  assertEquals(describeAttention(info, shape, own), undefined); // a device that has no such kernel
  assertEquals(describeAttention({ ...info, attention }, shape, own), undefined);
  assertMatch(
    describeAttention({ ...info, attention }, { ...shape, headDim: 256 }, own)!,
    /3 of 3 .*d4b8\+d4b8, 256 ch/,
  );
  const parts = { keys: side("d4b8", "million"), values: side("d4b8", "million") };
  assertMatch(describeAttention({ ...info, attention }, shape, parts)!, /3 of 3 layers \(d4b8\+d4b8/);
  const values = { ...side("d4b8"), layerFormats: [FORMATS.d4b8, FORMATS.d4b6, FORMATS.d8b8] };
  assertMatch(
    describeAttention({ ...info, attention }, shape, { keys: side("d4b8"), values })!,
    /1 of 3 .*d4b8\+d4b6/,
  );
});
