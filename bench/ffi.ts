/**
 * What a call through FFI costs before any work: the floor under every op.
 *
 * @module
 */

import { advance, Tensor } from "../lib/ops/mod.ts";
import { benchmark } from "./frame.ts";

await benchmark("ffi", "the cost of a native call and of a checked op", {}, async ({ device, time }) => {
  const status = new Uint8Array(32), { native, context } = device;
  await time("native call, 2 arguments", () => void native.vi_memory_info(context, status), undefined, {
    recorded: false,
  });
  using positions = Tensor.zeros(device, "i32", [1]);
  await time("op advance, 1 row, checked", () => advance(positions), undefined, { recorded: false });
  using graph = device.capture(() => {
    for (let i = 0; i < 100; i++) advance(positions);
  });
  await time("recorded graph of 100 advances", () => graph.launch(), undefined, { recorded: false });
});
