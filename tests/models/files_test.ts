import { assertEquals } from "@std/assert";
import { join } from "node:path";
import { test } from "node:test";
import { Tensor, writeSafetensors } from "../../lib/ops/mod.ts";
import { planOf } from "../../lib/models/model.ts";
import { syntheticConfig } from "../../lib/models/synthetic.ts";
import { openWeights } from "../../lib/models/weights/files.ts";
import { writeGguf } from "../../scripts/frame/gguf.ts";
import { cpu } from "../support/device.ts";
import { llamaMetadata, randomTensor } from "../support/gguf.ts";
import { Random } from "../support/random.ts";
import { bf16 } from "../support/reference.ts";
import { withFolder } from "../weights/fixture.ts";

const plan = planOf(syntheticConfig("tiny-llama"));
const seed = Date.now() & 0xffff;

test(`f32 tensors are filled exactly from F32, F16 and BF16, bf16 ones to the nearest, seed ${seed}`, () =>
  withFolder((folder) => {
    const random = new Random(seed), width = 96;
    // A norm by its two names: in a folder, and in a GGUF file.
    for (const dtype of ["F32", "F16", "BF16"] as const) {
      const own = randomTensor(random, "output_norm.weight", dtype, [width]), gguf = join(folder, `${dtype}.gguf`);
      const bytes = own.data() as Uint8Array<ArrayBuffer>;
      writeSafetensors(join(folder, "model.safetensors"), {
        "model.norm.weight": { dtype, shape: [width], data: bytes },
      });
      writeGguf(gguf, llamaMetadata({ hidden: width, inner: 64, layers: 1, heads: 1, kvHeads: 1 }), [own]);
      for (const path of [folder, gguf]) {
        using file = openWeights(path, plan);
        using exact = Tensor.empty(cpu, "f32", [width]);
        using rounded = Tensor.empty(cpu, "bf16", [width]);
        assertEquals(file.fill(exact, "model.norm.weight"), bytes.byteLength);
        assertEquals([...exact.read()], Array.from(own.weights), `${path} ${dtype}`);
        file.fill(rounded, "model.norm.weight");
        const bits = Array.from(rounded.read<Uint16Array>(), (word) => word << 16);
        assertEquals([...new Float32Array(Int32Array.from(bits).buffer)], Array.from(own.weights, bf16));
      }
    }
  }));
