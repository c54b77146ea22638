import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { closeSync, copyFileSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { modelFingerprint } from "../../lib/weights/fingerprint.ts";
import { openModel, type SafetensorsType, type TensorData, writeSafetensors } from "../../lib/weights/safetensors.ts";
import { tinyLlama, withFolder } from "./fixture.ts";

test("fingerprint: stays when a model is cut into shards, changes with its weights and its configuration", () =>
  withFolder((folder) => {
    const original = modelFingerprint(tinyLlama);
    assertMatch(original, /^[0-9a-f]{64}$/);
    assertEquals(modelFingerprint(tinyLlama), original);

    const configPath = join(folder, "config.json");
    copyFileSync(join(tinyLlama, "config.json"), configPath);
    const shards: Record<string, TensorData>[] = [{}, {}];
    const weightMap: Record<string, string> = {};
    const nameOf = (shard: number): string => `model-0000${shard + 1}-of-00002.safetensors`;
    {
      using weights = openModel(tinyLlama);
      weights.names.reverse().forEach((name, i) => {
        const { dtype, shape } = weights.info(name);
        shards[i % 2][name] = { dtype: dtype as SafetensorsType, shape, data: weights.read(name) };
        weightMap[name] = nameOf(i % 2);
      });
    }
    shards.forEach((tensors, i) => writeSafetensors(join(folder, nameOf(i)), tensors));
    writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify({ weight_map: weightMap }));
    assertEquals(modelFingerprint(folder), original);

    const config = JSON.parse(readFileSync(configPath, "utf8"));
    writeFileSync(configPath, JSON.stringify({ ...config, max_position_embeddings: 4096, torch_dtype: "float32" }));
    assertEquals(modelFingerprint(folder), original);
    writeFileSync(configPath, JSON.stringify({ ...config, rope_theta: 20000 }));
    assertNotEquals(modelFingerprint(folder), original);
    writeFileSync(configPath, JSON.stringify(config));

    const name = Object.keys(shards[0])[0];
    const changed = shards[0][name].data.slice();
    changed[0] ^= 1;
    writeSafetensors(join(folder, nameOf(0)), { ...shards[0], [name]: { ...shards[0][name], data: changed } });
    assertNotEquals(modelFingerprint(folder), original);
    writeSafetensors(join(folder, nameOf(0)), shards[0]);
    assertEquals(modelFingerprint(folder), original);
  }));

test("fingerprint: reads a sample, not the weights", () =>
  withFolder((folder) => {
    copyFileSync(join(tinyLlama, "config.json"), join(folder, "config.json"));
    // A sparse file of 64 GiB: reading it whole would take minutes.
    const bytes = 2 ** 36;
    const path = join(folder, "model.safetensors");
    const header = new TextEncoder().encode(
      JSON.stringify({ a: { dtype: "U8", shape: [bytes], data_offsets: [0, bytes] } }),
    );
    const fd = openSync(path, "w");
    const lead = new Uint8Array(8);
    new DataView(lead.buffer).setBigUint64(0, BigInt(header.byteLength), true);
    writeSync(fd, lead);
    writeSync(fd, header);
    writeSync(fd, new Uint8Array(1), 0, 1, 8 + header.byteLength + bytes - 1);
    closeSync(fd);
    const start = performance.now();
    modelFingerprint(folder);
    assert(performance.now() - start < 5000);
    rmSync(path);
  }));
