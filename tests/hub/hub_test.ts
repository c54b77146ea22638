import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { isModelFile, pull, type PullOptions, type PullProgress } from "../../lib/hub/hub.ts";
import { WeightsError } from "../../lib/weights/safetensors.ts";
import { Random } from "../support/random.ts";
import { safetensorsFile, withFolder } from "../weights/fixture.ts";
import { cut, entryOf, type HubServer, startHub } from "./hub_server.ts";

const text = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
const SIZE = 300_000;
const weights = safetensorsFile({ a: { dtype: "U8", shape: [SIZE], data_offsets: [0, SIZE] } }, SIZE);
const noise = new Random(5);
for (let i = weights.byteLength - SIZE; i < weights.byteLength; i++) weights[i] = noise.integer(0, 255);
const files: Record<string, Uint8Array> = {
  "config.json": text({ architectures: ["LlamaForCausalLM"] }),
  "tokenizer.json": text({ padding: "x".repeat(5000) }),
  "tokenizer_config.json": text({}),
  "model.safetensors": weights,
};
const unwanted = {
  "README.md": text("readme"),
  "pytorch_model.bin": text("pickle"),
  "original/consolidated.00.pth": text("pickle"),
  "original/model.safetensors": text("other"),
  "consolidated.safetensors": text("other"),
};

/** Runs `work` with a hub and a folder; `attempt` pulls with short pauses. */
async function withHub(
  work: (
    hub: HubServer,
    folder: string,
    attempt: (options?: Partial<PullOptions>) => ReturnType<typeof pull>,
  ) => Promise<void>,
): Promise<void> {
  const hub = await startHub({ ...files, ...unwanted });
  hub.listing.push({ type: "directory", path: "original", oid: "0".repeat(40), size: 0 });
  try {
    await withFolder(async (folder) => {
      await work(
        hub,
        folder,
        (options) => pull({ id: "owner/name", folder, endpoint: hub.endpoint, backoff: 5, attempts: 3, ...options }),
      );
    });
  } finally {
    await hub.close();
  }
}

function assertWhole(folder: string): void {
  for (const [name, bytes] of Object.entries(files)) {
    assert(readFileSync(join(folder, name)).equals(bytes), `${name} differs`);
  }
  assertEquals(readdirSync(folder).sort(), [...Object.keys(files), ".pull.json"].sort());
}

const downloads = (hub: HubServer, name: string) => hub.seen.filter(({ path }) => path.endsWith(`/${name}`));

test("hub: downloads the model's files and no others, small ones first", () =>
  withHub(async (hub, folder, attempt) => {
    const steps: PullProgress[] = [];
    const result = await attempt({ onProgress: (progress) => steps.push(progress) });
    assertWhole(folder);
    assertEquals(new Set(result.files.map((file) => file.outcome)), new Set(["downloaded"]));
    assertEquals(result.files.at(-1)!.path, "model.safetensors");
    const ofWeights = steps.filter(({ file }) => file === "model.safetensors");
    assertEquals(ofWeights.at(-1), {
      file: "model.safetensors",
      step: "done",
      bytes: weights.byteLength,
      size: weights.byteLength,
    });
    const received = ofWeights.filter(({ step }) => step === "download").map(({ bytes }) => bytes);
    assertEquals(received, received.toSorted((a, b) => a - b));
    assertEquals(received.at(-1), weights.byteLength);
    assert(hub.seen.every(({ authorization }) => authorization === undefined));
  }));

test("hub: a second pull downloads nothing, and replaces a file that was changed", () =>
  withHub(async (hub, folder, attempt) => {
    await attempt();
    const requests = hub.seen.length;
    const again = await attempt();
    assertEquals(hub.seen.length, requests + 1);
    assert(again.files.every((file) => file.outcome === "present"));
    const damaged = weights.slice();
    damaged[damaged.length - 1] ^= 1;
    writeFileSync(join(folder, "model.safetensors"), damaged);
    const third = await attempt();
    assertEquals(third.files.filter((file) => file.outcome === "downloaded").map((file) => file.path), [
      "model.safetensors",
    ]);
    assertWhole(folder);
  }));

test("hub: goes on after cut connections, from where they broke", () =>
  withHub(async (hub, folder, attempt) => {
    let cuts = 0;
    hub.intercept = (request, response, file) => {
      // More cuts than attempts: each one that brought bytes starts the count anew.
      if (file !== "model.safetensors" || cuts === 6) return false;
      cuts++;
      cut(response, weights, Number(/\d+/.exec(request.headers.range ?? "0")![0]), 30_000);
      return true;
    };
    const causes: string[] = [];
    await attempt({ onProgress: ({ step, cause }) => step === "retry" && causes.push(cause!) });
    assertWhole(folder);
    const ranges = downloads(hub, "model.safetensors").map(({ range }) => Number(/\d+/.exec(range ?? "0")![0]));
    assertEquals([cuts, causes.length], [6, 6]);
    assertEquals(ranges[0], 0);
    for (let i = 1; i < ranges.length; i++) assert(ranges[i] > ranges[i - 1], String(ranges));
  }));

test("hub: gives up on a connection that breaks without a byte", () =>
  withHub(async (hub, _folder, attempt) => {
    hub.intercept = (_request, response, file) => {
      if (file !== "model.safetensors") return false;
      response.destroy();
      return true;
    };
    const error = await assertRejects(() => attempt(), WeightsError);
    assertStringIncludes(error.message, "resolve/main/model.safetensors");
    assertStringIncludes(error.message, "given up after 3 attempts");
    assertEquals(downloads(hub, "model.safetensors").length >= 3, true);
  }));

test("hub: a silent connection counts as broken", () =>
  withHub(async (hub, folder, attempt) => {
    let silent = 2;
    hub.intercept = (_request, response, file) => {
      if (file !== "model.safetensors" || silent === 0) return false;
      if (--silent === 0) response.write(weights.subarray(0, 1000));
      return true;
    };
    const causes: string[] = [];
    await attempt({ stall: 300, onProgress: ({ step, cause }) => step === "retry" && causes.push(cause!) });
    assertEquals(causes, ["no byte arrived for 0.3 s", "no byte arrived for 0.3 s"]);
    assertWhole(folder);
  }));

test("hub: an interrupted pull is resumed by the next one", () =>
  withHub(async (hub, folder, attempt) => {
    let stopAt = true;
    hub.intercept = (_request, response, file) => {
      if (file !== "model.safetensors" || !stopAt) return false;
      response.setHeader("content-length", weights.byteLength);
      response.write(weights.subarray(0, 100_000));
      return true;
    };
    const controller = new AbortController();
    const stopped = attempt({
      signal: controller.signal,
      onProgress: ({ file, bytes }) => {
        if (file === "model.safetensors" && bytes >= 100_000) controller.abort(new Error("interrupted by the test"));
      },
    });
    await assertRejects(() => stopped, Error, "interrupted by the test");
    assertEquals(readFileSync(join(folder, "model.safetensors.part")).byteLength, 100_000);
    assertEquals(existsSync(join(folder, ".pull.lock")), false);
    stopAt = false;
    const result = await attempt();
    assertEquals(downloads(hub, "model.safetensors").at(-1)!.range, "bytes=100000-");
    assertEquals(result.files.at(-1)!.outcome, "resumed");
    assertWhole(folder);
  }));

test("hub: a beginning from another revision is noticed and downloaded anew", () =>
  withHub(async (hub, folder, attempt) => {
    writeFileSync(join(folder, "model.safetensors.part"), new Uint8Array(1000));
    const result = await attempt();
    assertEquals(downloads(hub, "model.safetensors").map(({ range }) => range), ["bytes=1000-", undefined]);
    assertEquals(result.files.at(-1)!.outcome, "downloaded");
    assertWhole(folder);
  }));

test("hub: a server without ranges is read from the start", () =>
  withHub(async (hub, folder, attempt) => {
    writeFileSync(join(folder, "model.safetensors.part"), weights.subarray(0, 1000));
    hub.intercept = (_request, response, file) => {
      if (file !== "model.safetensors") return false;
      response.end(weights);
      return true;
    };
    await attempt();
    assertWhole(folder);
  }));

test("hub: wrong contents are refused and deleted, small file and large", () =>
  withHub(async (hub, folder, attempt) => {
    const entries = [...hub.listing];
    for (const [name, sum] of [["config.json", "git SHA-1"], ["model.safetensors", "SHA-256"]]) {
      const other = files[name].slice();
      other[other.length - 1] ^= 1;
      hub.listing = entries.map((entry) => (entry as { path: string }).path === name ? entryOf(name, other) : entry);
      const error = await assertRejects(() => attempt(), WeightsError);
      assertStringIncludes(error.message, join(folder, name));
      assertStringIncludes(error.message, `checksum mismatch: ${sum}`);
      assertEquals([existsSync(join(folder, name)), existsSync(join(folder, `${name}.part`))], [false, false]);
      hub.listing = entries;
    }
    hub.intercept = (_request, response, file) => {
      if (file !== "model.safetensors") return false;
      response.end(Buffer.concat([weights, weights]));
      return true;
    };
    const error = await assertRejects(() => attempt(), WeightsError);
    assertStringIncludes(error.message, "more than the");
  }));

test("hub: statuses: 404, 401 and 403 end it at once, 500, 503 and 429 are tried again", () =>
  withHub(async (hub, folder, attempt) => {
    for (const [status, part] of [[404, "no such repository"], [401, "token"], [403, "gated"], [418, "418"]] as const) {
      const before = hub.seen.length;
      hub.intercept = (_request, response) => {
        response.statusCode = status;
        response.end();
        return true;
      };
      const error = await assertRejects(() => attempt(), WeightsError);
      assertStringIncludes(error.message, `${hub.endpoint}/api/models/owner/name/tree/main`);
      assertStringIncludes(error.message, String(status));
      assertStringIncludes(error.message, part);
      assertEquals(hub.seen.length, before + 1);
    }
    const failures = [500, 503, 429, 500, 502];
    hub.intercept = (_request, response, file) => {
      if (failures.length === 0 || (failures.length <= 3 && file !== "model.safetensors")) return false;
      response.statusCode = failures.shift()!;
      if (response.statusCode === 429) response.setHeader("retry-after", "0");
      response.end();
      return true;
    };
    await attempt({ attempts: 4 });
    assertEquals(failures, []);
    assertWhole(folder);
    hub.intercept = (_request, response) => {
      response.statusCode = 500;
      response.end();
      return true;
    };
    const error = await assertRejects(() => attempt(), WeightsError);
    assertStringIncludes(error.message, "HTTP 500; given up after 3 attempts");
  }));

test("hub: the token goes to the hub and not to where it redirects", () =>
  withHub(async (hub, folder, attempt) => {
    const storage = await startHub(files);
    try {
      hub.intercept = (request, response, file) => {
        if (file === undefined) return false;
        response.statusCode = 302;
        response.setHeader("location", `${storage.endpoint}${request.url}?signature=1`);
        response.end();
        return true;
      };
      await attempt({ token: "hf_secret" });
      assertWhole(folder);
      assert(hub.seen.every(({ authorization }) => authorization === "Bearer hf_secret"));
      assertEquals(storage.seen.length, Object.keys(files).length);
      assert(storage.seen.every(({ authorization }) => authorization === undefined));
    } finally {
      await storage.close();
    }
  }));

test("hub: a listing in pages is read to its end", () =>
  withHub(async (hub, folder, attempt) => {
    const entries = hub.listing;
    hub.intercept = (request, response, file) => {
      if (file !== undefined) return false;
      const page = Number(new URL(request.url!, "http://hub").searchParams.get("cursor") ?? 0);
      if (page + 2 < entries.length) {
        response.setHeader("link", `<${hub.endpoint}/api/models/owner/name/tree/main?cursor=${page + 2}>; rel="next"`);
      }
      response.end(JSON.stringify(entries.slice(page, page + 2)));
      return true;
    };
    await attempt();
    assertWhole(folder);
  }));

test("hub: listings that leave the folder, lack files or checksums, or are no list are refused", () =>
  withHub(async (hub, folder, attempt) => {
    const entries = [...hub.listing];
    const refused = async (listing: unknown, part: string): Promise<void> => {
      hub.listing = listing as unknown[];
      assertStringIncludes((await assertRejects(() => attempt(), WeightsError)).message, part);
      assertEquals(readdirSync(folder), []);
    };
    for (const path of ["../config.json", "/etc/passwd", "a/../../b", "..\\config.json", "a\0b", "", "."]) {
      await refused([...entries, { ...entryOf("x", new Uint8Array(1)), path }], "would leave the folder");
    }
    const without = (...names: string[]) =>
      entries.filter((entry) => !names.includes((entry as { path: string }).path));
    await refused(without("config.json"), "has no config.json");
    await refused(without("tokenizer.json"), "has no tokenizer.json");
    await refused(without("model.safetensors"), "has no model.safetensors");
    await refused(
      [...entries, { type: "file", path: "chat_template.jinja", size: 3 }],
      "no checksum for chat_template",
    );
    await refused([...entries, { type: "file", path: "chat_template.jinja", oid: "0".repeat(40) }], "no size for");
    await refused([{ type: "file" }], "without a path");
    await refused({ error: "x" }, "not a list");
    hub.intercept = (_request, response) => {
      response.end("<html>");
      return true;
    };
    assertStringIncludes((await assertRejects(() => attempt(), WeightsError)).message, "/tree/main");
    await assertRejects(() => attempt({ id: "../x" }), WeightsError, "owner/name");
    await assertRejects(() => attempt({ endpoint: "hub" }), WeightsError, "not the address of a hub");
  }));

test("hub: offline fetches nothing and finds what is missing or wrong", () =>
  withHub(async (hub, folder, attempt) => {
    await attempt();
    const requests = hub.seen.length;
    const offline = () => attempt({ offline: true });
    assertEquals((await offline()).files.length, Object.keys(files).length);
    await assertRejects(() => attempt({ offline: true, id: "owner/other" }), WeightsError, "not owner/other");
    const damaged = weights.slice();
    damaged[damaged.length - 1] ^= 1;
    writeFileSync(join(folder, "model.safetensors"), damaged);
    await assertRejects(offline, WeightsError, "model.safetensors: checksum mismatch");
    writeFileSync(join(folder, "model.safetensors"), weights.subarray(0, 1000));
    await assertRejects(offline, WeightsError, "model.safetensors: has 1000 bytes");
    assertEquals(hub.seen.length, requests);
  }));

test("hub: offline without a record checks the structure", () =>
  withFolder(async (folder) => {
    const offline = () => pull({ id: "owner/name", folder, offline: true });
    await assertRejects(offline, WeightsError, "config.json: no such file");
    for (const [name, bytes] of Object.entries(files)) writeFileSync(join(folder, name), bytes);
    assertEquals((await offline()).files, []);
    writeFileSync(join(folder, "model.safetensors"), weights.subarray(0, 1000));
    await assertRejects(offline, WeightsError, "model.safetensors");
    await assertRejects(
      () => pull({ id: "owner/name", folder: join(folder, "none"), offline: true }),
      WeightsError,
      "no such folder",
    );
  }));

test("hub: two pulls into one folder do not mix; a lock whose process has ended is taken over", () =>
  withHub(async (_hub, folder, attempt) => {
    const outcomes = await Promise.allSettled([attempt(), attempt()]);
    assertEquals(outcomes.map(({ status }) => status).sort(), ["fulfilled", "rejected"]);
    const { reason } = outcomes.find(({ status }) => status === "rejected") as PromiseRejectedResult;
    assert(reason instanceof WeightsError);
    assertStringIncludes(reason.message, `process ${process.pid} is writing here`);
    assertWhole(folder);
    writeFileSync(join(folder, ".pull.lock"), "999999999");
    await attempt();
    assertWhole(folder);
  }));

test("hub: a folder that cannot be made is named", () =>
  withHub(async (_hub, folder, attempt) => {
    writeFileSync(join(folder, "file"), "");
    await assertRejects(() => attempt({ folder: join(folder, "file", "model") }), WeightsError, "cannot be made");
  }));

test("hub: files of a model", () => {
  for (const name of ["model.safetensors", "model-00001-of-00012.safetensors", "generation_config.json"]) {
    assert(isModelFile(name), name);
  }
  for (const name of ["a/config.json", "adapter_model.safetensors", "model.safetensors.part", "MODEL.safetensors"]) {
    assert(!isModelFile(name), name);
  }
});
