import { assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type GgufEntry, writeGguf } from "../../scripts/frame/gguf.ts";
import { ggufFiles } from "../../lib/hub/gguf_files.ts";
import { pull, type PullOptions } from "../../lib/hub/hub.ts";
import { WeightsError } from "../../lib/weights/json.ts";
import { randomTensor } from "../support/gguf.ts";
import { Random } from "../support/random.ts";
import { withFolder } from "../weights/fixture.ts";
import { type HubServer, startHub } from "./hub_server.ts";

/** Files of a repository: two quantizations in one file each, one in two parts in a folder. */
function repository(folder: string): Record<string, Uint8Array> {
  const random = new Random(77),
    bytes = (metadata: GgufEntry[], tensor: string): Uint8Array => {
      const path = join(folder, "x");
      writeGguf(path, metadata, [randomTensor(random, tensor, "Q8_0", [64, 256])]);
      return new Uint8Array(readFileSync(path));
    };
  const part = (i: number): GgufEntry[] => [["split.no", "u32", i], ["split.count", "u32", 2]];
  return {
    "README.md": new TextEncoder().encode("readme"),
    "Model-7B-Q4_K.gguf": bytes([], "a"),
    "Model-7B-Q4_K_M.gguf": bytes([], "b"),
    "Q8_0/Model-7B-Q8_0-00001-of-00002.gguf": bytes(part(0), "a"),
    "Q8_0/Model-7B-Q8_0-00002-of-00002.gguf": bytes(part(1), "b"),
    "mmproj-Model-7B-F16.gguf": bytes([], "c"),
  };
}

async function withGgufHub(
  work: (
    files: Record<string, Uint8Array>,
    folder: string,
    attempt: (options?: Partial<PullOptions>) => ReturnType<typeof pull>,
    hub: HubServer,
  ) => Promise<void>,
): Promise<void> {
  await withFolder(async (made) => {
    const files = repository(made), hub = await startHub(files), folder = join(made, "models");
    try {
      await work(
        files,
        folder,
        (options) => pull({ id: "owner/name", folder, endpoint: hub.endpoint, backoff: 5, ...options }),
        hub,
      );
    } finally {
      await hub.close();
    }
  });
}

test("hub: one GGUF model of a repository, by its path or its quantization, and no other file", () =>
  withGgufHub(async (files, folder, attempt, hub) => {
    const whole = await attempt({ gguf: "q4_k_m" }), name = "Model-7B-Q4_K_M.gguf";
    assertEquals(whole.model, join(folder, name));
    assertEquals(whole.files.map(({ path, outcome }) => [path, outcome]), [[name, "downloaded"]]);
    assertEquals(readdirSync(folder).sort(), [".pull.json", name]);
    assertEquals(new Uint8Array(readFileSync(whole.model)), files[name]);
    const parts = ["Q8_0/Model-7B-Q8_0-00001-of-00002.gguf", "Q8_0/Model-7B-Q8_0-00002-of-00002.gguf"];
    for (const gguf of ["Q8_0", ...parts, "Q8_0/Model-7B-Q8_0.gguf"]) {
      const split = await attempt({ gguf });
      assertEquals(split.model, join(folder, parts[0]));
      assertEquals(split.files.map(({ path }) => path).sort(), parts);
      for (const path of parts) assertEquals(new Uint8Array(readFileSync(join(folder, path))), files[path]);
    }
    // Both are known to the record, and are checked without network.
    const requests = hub.seen.length;
    for (const gguf of ["Q4_K_M", "Q8_0"]) {
      assertEquals((await attempt({ gguf, offline: true })).files.every(({ outcome }) => outcome === "present"), true);
    }
    assertEquals(hub.seen.length, requests);
    writeFileSync(join(folder, parts[1]), files[parts[1]].slice(1));
    const { message } = await assertRejects(() => attempt({ gguf: "Q8_0", offline: true }), WeightsError);
    assertStringIncludes(message, `${join(folder, parts[1])}: has`);
    assertEquals((await attempt({ gguf: "Q8_0" })).files.map(({ outcome }) => outcome).sort(), [
      "downloaded",
      "present",
    ]);
  }));

test("hub: a GGUF model that is not there or not one is refused with what there is, and so is a repository without a model folder", () =>
  withGgufHub(async (_, folder, attempt) => {
    for (
      const [gguf, ...causes] of [
        ["Q5_K_M", "no GGUF model is named Q5_K_M", "Model-7B-Q4_K.gguf", "Q8_0/Model-7B-Q8_0.gguf"],
        ["Model-7B", "3 GGUF models are named Model-7B", "Model-7B-Q4_K_M.gguf"],
        ["Q4", "no GGUF model is named Q4"],
        [".*", "no GGUF model is named .*"],
      ]
    ) {
      const { message } = await assertRejects(() => attempt({ gguf }), WeightsError);
      for (const cause of causes) assertStringIncludes(message, cause);
    }
    const { message } = await assertRejects(() => attempt(), WeightsError);
    assertStringIncludes(message, "has no config.json, but GGUF files: ask for one of Model-7B-Q4_K.gguf");
    assertEquals(existsSync(join(folder, ".pull.json")), false);
    await assertRejects(() => attempt({ gguf: "Q8_0", offline: true }), WeightsError);
  }));

test("hub: names of quantizations are whole words of a file's name", () => {
  const paths = ["m.Q4_K_M.gguf", "m.Q4_K_S.gguf", "m-UD-Q4_K_XL.gguf", "Q6_K/m-00001-of-00001.gguf", "m.txt"];
  for (
    const [wanted, found] of [["Q4_K_M", 0], ["q4_k_s", 1], ["UD-Q4_K_XL", 2], ["Q4_K_XL", 2], ["Q6_K", 3]] as const
  ) {
    assertEquals(ggufFiles("r", paths, wanted), [paths[found]]);
  }
  for (const wanted of ["Q4_K", "m", "K_M", "m.txt", ""]) {
    assertThrows(() => ggufFiles("r", paths, wanted), WeightsError);
  }
});
