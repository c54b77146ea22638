import { assertEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import { syntheticConfig } from "../../lib/ops/mod.ts";
import { ARCHITECTURES, planOf } from "../../lib/models/model.ts";
import { architectures } from "../../lib/weights/architectures.ts";

test("an architecture whose config.json is read can be run, and the other way about", () => {
  assertEquals(ARCHITECTURES.map(({ name }) => name).sort(), Object.keys(architectures).sort());
  for (const { name } of ARCHITECTURES) {
    const config = { ...syntheticConfig("tiny-llama"), architecture: name };
    assertEquals(planOf(config).layers.length, config.layers);
  }
});

test("an unknown architecture is refused by name", () => {
  const config = { ...syntheticConfig("tiny-llama"), architecture: "OtherForCausalLM" };
  assertThrows(() => planOf(config), RangeError, "OtherForCausalLM; there are LlamaForCausalLM, Qwen2ForCausalLM");
});
