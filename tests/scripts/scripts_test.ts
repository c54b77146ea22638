import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import {
  copyFileSync,
  cpSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { slow } from "../support/slow.ts";

const root = fileURLToPath(new URL("../..", import.meta.url)), model = join(root, "assets/tiny-llama");

/** Runs a script under the runtime that runs this test. */
function run(script: string, ...args: string[]) {
  const prefix = "Deno" in globalThis ? ["run", "-A"] : [];
  const { status, stdout, stderr } = spawnSync(process.execPath, [...prefix, `scripts/${script}.ts`, ...args], {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "1" },
  });
  return { status, stdout, stderr };
}

/** A copy of the embedded model, without its calibrations, that a test may spoil. */
function withModel(use: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-model-"));
  try {
    for (const file of ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]) {
      copyFileSync(join(model, file), join(folder, file));
    }
    use(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Edits the JSON header of a safetensors file in place; the header keeps its length. */
function editHeader(path: string, edit: (text: string) => string): void {
  const bytes = readFileSync(path), length = Number(bytes.readBigUInt64LE(0));
  const text = edit(bytes.subarray(8, 8 + length).toString());
  assert(text.length <= length, "the edit must not grow the header");
  bytes.write(text.padEnd(length), 8);
  writeFileSync(path, bytes);
}

test("generate --json prints one object with text, tokens and the effective configuration", () => {
  const { status, stdout, stderr } = run("generate", "--json", "--device", "cpu", "-n", "8", "The kernel");
  assertEquals([status, stderr], [0, ""]);
  const result = JSON.parse(stdout);
  assertEquals([result.tokens.length, result.config.kv, result.finishReason], [8, "vq2+", "length"]);
  assert(result.prefillTokensPerSecond > 0 && result.decodeTokensPerSecond > 0);
});

test("generate streams prompt and text to stdout, the configuration to stderr", () => {
  const { status, stdout, stderr } = run("generate", "--device", "cpu", "-k", "bf16", "-n", "8", "The kernel");
  assertEquals(status, 0);
  assert(stdout.startsWith("The kernel") && stdout.length > 20, stdout);
  assertStringIncludes(stderr, "keys bf16");
});

test("a model without a calibration says data-free on the command line", () => {
  withModel((folder) => {
    const { status, stderr } = run("generate", "--device", "cpu", "-m", folder, "-n", "4", "The kernel");
    assertEquals(status, 0);
    assertStringIncludes(stderr, "data-free (no calibration file)");
  });
});

test("plan counts the embedded model's weights and caches", () => {
  const { status, stdout } = run("plan", "--json", "--memory", "24MB", "--context", "2048");
  assertEquals(status, 0);
  const { parameters, weightBytes, rows } = JSON.parse(stdout);
  const norms = (2 * 8 + 1) * 256; // in f32
  assertEquals([parameters, weightBytes], [8130816, 2 * (8130816 + norms)]);
  const [bf16, , , vq2] = rows;
  assertEquals([bf16.kv, bf16.cacheBytes, bf16.fits], ["bf16", 4096 * 2048, false]);
  assertEquals([vq2.kv, vq2.fits], ["vq2", true]);
  assert(vq2.longestContext > 4 * bf16.longestContext);
});

test("evaluate --json measures presets against bf16", () => {
  const { status, stdout } = run(
    "evaluate",
    "--json",
    "--device",
    "cpu",
    "-k",
    "vq4,d4b8+d8b8",
    "--windows",
    "1",
    "--length",
    "256",
  );
  assertEquals(status, 0);
  const { rows } = JSON.parse(stdout);
  assertEquals(rows.map((row: { kv: string }) => row.kv), ["bf16", "vq4", "d4b8+d8b8"]);
  assert(rows[0].kl === 0 && rows[1].kl > 0 && rows[2].kl > rows[1].kl, stdout);
});

/** What a row of `evaluate --json` has. */
interface Row {
  text: string;
  method: string;
  path: string;
  kl: number;
  effectiveBits: number;
  attentionError: number[];
  retrieved: boolean[];
  drift: { first: number; agreement: number }[];
}

/** `evaluate --json` of methods over a short text. */
function evaluateMethods(methods: string[], ...args: string[]) {
  const short = ["--windows", "1", "--length", "192", "--calibration-windows", "3", "--sinks", "0", "--window", "64"];
  const { status, stdout, stderr } = run(
    "evaluate",
    "--json",
    "--device",
    "cpu",
    ...short,
    "--method",
    methods.join(),
    ...args,
  );
  assertEquals([status, stderr], [0, ""]);
  return JSON.parse(stdout);
}

test(
  "evaluate --json takes every measure of the methods of other systems, and says which path they run on",
  { skip: slow },
  () => {
    const { rows, codebooks, outliers, context } = evaluateMethods(
      ["vecinfer", "million", "kivi:g64"],
      "--measures",
      "all",
    );
    assertEquals(
      rows.map((row: Row) => [row.method, row.path]),
      [["bf16", "fused"], ["vecinfer", "fused"], ["million", "fused"], ["kivi:b2g64", "reference"]],
    );
    for (const [i, row] of (rows as Row[]).entries()) {
      const figures = JSON.stringify(row);
      assert(i === 0 ? row.kl === 0 : row.kl > 1e-4 && row.kl < 0.4, figures);
      assertEquals([row.attentionError.length, row.retrieved.length, row.drift.length], [8, 10, 1]);
      assert(Math.max(...row.attentionError) < 0.6 && (i === 0 || Math.min(...row.attentionError) > 1e-3), figures);
      assert(row.drift[0].first <= 256 && row.drift[0].agreement <= 1, figures);
      assert(row.effectiveBits > 2 && row.effectiveBits <= (i === 0 ? 16 : 2.7), figures);
    }
    assertEquals(context, 32768);
    const { entropy, counts, bits } = codebooks[0];
    assert(
      entropy > bits - 2 && entropy <= bits && counts.length === 256 && counts[0] >= counts[255],
      `entropy ${entropy}`,
    );
    const { before, after } = outliers[0],
      peak = (x: number[]) => Math.max(...x) / [...x].sort((a, b) => a - b)[x.length >> 1];
    assert(peak(before) > peak(after), "the transform does not flatten the channels");
  },
);

test("evaluate measures several kinds of text, each against its own bf16", { skip: slow }, () => {
  const text = join(model, "eval.txt"), files = `docs=${text},calib=${join(model, "calib.txt")}`;
  const { rows, texts } = evaluateMethods(["data-free", "ott", "turboquant", "clustering"], "--text", files);
  assertEquals(texts.map(({ kind }: { kind: string }) => kind), ["docs", "calib"]);
  for (const kind of ["docs", "calib"]) {
    const own: Row[] = rows.filter((row: Row) => row.text === kind);
    assertEquals(own.map(({ method }) => method), [
      "bf16",
      "data-free",
      "ott:b2g128",
      "turboquant:b2",
      "clustering:r4",
    ]);
    assert(own[0].kl === 0 && own.slice(1).every(({ kl }) => kl > 1e-4 && kl < 0.4), JSON.stringify(own));
  }
});

test("calibrate writes a file that generate then uses", () => {
  withModel((folder) => {
    const text = join(model, "calib.txt");
    const made = run(
      "calibrate",
      "--json",
      "--device",
      "cpu",
      "-m",
      folder,
      "-k",
      "vq1",
      "--windows",
      "1",
      "--length",
      "512",
      "--iterations",
      "2",
      text,
    );
    assertEquals([made.status, made.stderr], [0, ""]);
    const [{ path }] = JSON.parse(made.stdout).files;
    const used = run("generate", "--json", "--device", "cpu", "-m", folder, "-k", "vq1", "-n", "4", "The kernel");
    assertEquals(JSON.parse(used.stdout).config.calibration, path);
    const foreign = join(model, "calibration/vq2.vecinfer.safetensors"), other = join(folder, "config.json");
    writeFileSync(other, readFileSync(other, "utf8").replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'));
    const refused = run("generate", "--device", "cpu", "-m", folder, "--calibration", foreign, "The kernel");
    assertEquals(refused.status, 1);
    assertStringIncludes(refused.stderr, `${foreign}: made for another model`);
  });
});

// Each spoils a copy of the model; the message must name the file and the cause.
const spoilt: [string, (folder: string) => void, string, string][] = [
  ["truncated weights", (f) => truncateSync(join(f, "model.safetensors"), 9_000_000), "model.safetensors", ""],
  [
    "a corrupted header",
    (f) => editHeader(join(f, "model.safetensors"), (t) => t.replace("{", "[")),
    "model.safetensors",
    "JSON",
  ],
  [
    "a wrong dtype",
    (f) => editHeader(join(f, "model.safetensors"), (t) => t.replace('"dtype":"BF16"', '"dtype":"I16" ')),
    "model.safetensors",
    "I16",
  ],
  [
    "a missing tensor",
    (f) =>
      editHeader(
        join(f, "model.safetensors"),
        (t) => t.replace("model.layers.3.mlp.up_proj", "model.layers.3.mlp.xx_proj"),
      ),
    "model.safetensors",
    "model.layers.3.mlp.up_proj.weight",
  ],
  [
    "an unknown architecture",
    (f) => edit(join(f, "config.json"), '"LlamaForCausalLM"', '"MambaForCausalLM"'),
    "config.json",
    "MambaForCausalLM",
  ],
  ["head_dim 72", (f) => edit(join(f, "config.json"), '"head_dim": 64', '"head_dim": 72'), "config.json", "72"],
  ["no tokenizer", (f) => rmSync(join(f, "tokenizer.json")), "tokenizer.json", ""],
  [
    "a folder in place of the weights",
    (f) => {
      rmSync(join(f, "model.safetensors"));
      mkdirSync(join(f, "model.safetensors"));
    },
    "model.safetensors",
    "is a folder",
  ],
];

function edit(path: string, from: string, to: string): void {
  const text = readFileSync(path, "utf8");
  assert(text.includes(from));
  writeFileSync(path, text.replace(from, to));
}

for (const [what, spoil, file, cause] of spoilt) {
  test(`${what}: an error that names ${file}${cause && ` and ${cause}`}, exit code 1`, () => {
    withModel((folder) => {
      spoil(folder);
      const { status, stderr, stdout } = run("generate", "--device", "cpu", "-m", folder, "-n", "2", "The kernel");
      assertEquals([status, stdout], [1, ""]);
      assertStringIncludes(stderr, "error: ");
      assertStringIncludes(stderr, file);
      assertStringIncludes(stderr, cause);
    });
  });
}

test("a path that is no model is an error that says what to give, exit code 1", () => {
  withModel((folder) => {
    const empty = join(folder, "empty"), text = join(folder, "text.gguf");
    mkdirSync(empty);
    writeFileSync(text, "This is a text, whatever its name says.");
    const paths: [string, string][] = [
      [join(folder, "none"), "none: no such file; give a model folder"],
      [join(folder, "none.gguf"), "none.gguf: no such file; give a model folder"],
      [empty, `${join(empty, "config.json")}: no such file; give a model folder`],
      [join(folder, "model.safetensors"), "model.safetensors: is a file whose name does not end in .gguf; give"],
      [text, "text.gguf: is not a GGUF file"],
    ];
    for (const [path, message] of paths) {
      for (const args of [["generate", "-m", path, "x"], ["plan", "-m", path]]) {
        const [script, ...rest] = args, { status, stdout, stderr } = run(script, ...rest);
        assertEquals([status, stdout], [1, ""]);
        assertStringIncludes(stderr, message);
      }
    }
    // A model without a text of its own is evaluated on one that is given.
    const { status, stderr } = run("evaluate", "-m", folder);
    assertEquals(status, 2);
    assertStringIncludes(stderr, "comes with no eval.txt; give a text file");
  });
});

test("text that is missing or not UTF-8 is an error that names it, exit code 1", () => {
  withModel((folder) => {
    const latin = join(folder, "latin.txt");
    writeFileSync(latin, Uint8Array.of(0x61, 0xe9, 0x62));
    for (const script of ["evaluate", "calibrate"]) {
      const { status, stderr } = run(script, "-k", "vq2", latin);
      assertEquals(status, 1);
      assertStringIncludes(stderr, `${latin}: is not UTF-8 text`);
    }
    const { status, stderr } = run("generate", "--file", join(folder, "none.txt"));
    assertEquals(status, 1);
    assertStringIncludes(stderr, "none.txt: cannot be read");
  });
});

test("a prompt longer than the context is an error with both numbers, exit code 1", () => {
  const { status, stderr } = run("generate", "--device", "cpu", "--context", "64", "word ".repeat(100));
  assertEquals(status, 1);
  assertStringIncludes(stderr, "do not fit the context of 64");
});

const badUse: [string, string[], string][] = [
  ["generate", ["--kv", "vq9", "x"], '"vq9" is unknown'],
  ["generate", [], "either a prompt or --file"],
  ["generate", ["-n", "0", "x"], "--max-tokens is 0"],
  ["generate", ["--device", "tpu", "x"], '--device is "tpu"'],
  ["calibrate", ["-k", "bf16", "x"], "nothing to calibrate"],
  ["calibrate", ["-k", "vq2+", "--no-smooth", "x"], "--no-smooth: fitted transforms"],
  ["calibrate", [], "argument is missing"],
  ["evaluate", ["--windows", "none"], "--windows takes a number"],
  ["evaluate", ["--method", "kiwi"], 'method "kiwi" is unknown'],
  ["evaluate", ["--method", "kivi:g9"], "g 32 64 128"],
  ["evaluate", ["--measures", "speed"], '"speed" is unknown'],
  ["evaluate", ["--text", "docs"], "not kind=FILE"],
  ["plan", ["--memory", "lots"], '--memory is "lots"'],
  ["demo", ["--nonsense"], "nonsense"],
];
for (const [script, args, message] of badUse) {
  test(`bad use of ${script}: ${message}, exit code 2`, () => {
    const { status, stdout, stderr } = run(script, ...args);
    assertEquals([status, stdout], [2, ""]);
    assertStringIncludes(stderr, message);
  });
}

/** A plugin of `deno lint` and a module that Bun loads first are no commands. */
const noCommands = ["scripts/chores/lint.ts", "scripts/chores/sigaltstack.ts"];
const commands = globSync("scripts/{,chores/}*.ts", { cwd: root }).filter((path) => !noCommands.includes(path)).sort();
for (const path of commands) {
  test(`${path} --help says how it is used`, () => {
    const { status, stdout } = run(path.replace(/^scripts\/|\.ts$/g, ""), "--help");
    assertEquals(status, 0);
    assertStringIncludes(stdout, `usage: ${path}`);
  });
}

test("sharded weights give the same text as one file", () => {
  withModel((folder) => {
    const path = join(folder, "model.safetensors"),
      bytes = readFileSync(path),
      length = Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.subarray(8, 8 + length).toString()),
      names = Object.keys(header).filter((n) => n !== "__metadata__");
    const map: Record<string, string> = {};
    for (const part of [0, 1]) {
      const file = `model-0000${part + 1}-of-00002.safetensors`, own = names.filter((_, i) => i % 2 === part);
      const data: Uint8Array[] = [], shard: Record<string, unknown> = {};
      let offset = 0;
      for (const name of own) {
        const [begin, end] = header[name].data_offsets;
        data.push(bytes.subarray(8 + length + begin, 8 + length + end));
        shard[name] = { ...header[name], data_offsets: [offset, offset += end - begin] };
        map[name] = file;
      }
      const text = new TextEncoder().encode(JSON.stringify(shard)), size = new Uint8Array(8);
      new DataView(size.buffer).setBigUint64(0, BigInt(text.length), true);
      writeFileSync(join(folder, file), Buffer.concat([size, text, ...data]));
    }
    writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify({ metadata: {}, weight_map: map }));
    rmSync(path);
    cpSync(join(model, "calibration"), join(folder, "calibration"), { recursive: true });
    const args = ["--json", "--device", "cpu", "-k", "bf16", "-n", "12", "The kernel"];
    const [sharded, whole] = [run("generate", "-m", folder, ...args), run("generate", ...args)];
    assertEquals(JSON.parse(sharded.stdout).tokens, JSON.parse(whole.stdout).tokens);
  });
});
