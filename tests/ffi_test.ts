import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Device, VecInferError } from "../lib/device.ts";
import { libraryName, openLibrary } from "../lib/ffi/library.ts";
import type { UntypedFunction } from "../lib/ffi/native.ts";
import { ABI_HASH, symbols, VI_PAGE_TOKENS } from "../lib/ffi/symbols.ts";
import { cpu } from "./support/device.ts";

const root = fileURLToPath(new URL("../", import.meta.url));

/** Runs `call` with VECINFER_LIB set. */
function withVariable(value: string, call: () => void): void {
  const before = process.env.VECINFER_LIB;
  process.env.VECINFER_LIB = value;
  try {
    call();
  } finally {
    if (before === undefined) delete process.env.VECINFER_LIB;
    else process.env.VECINFER_LIB = before;
  }
}

/** The symbols that a library exports, or undefined where they can't be listed. */
function exported(path: string): string[] | undefined {
  try {
    const lines = execFileSync("nm", ["-D", "--defined-only", path], { encoding: "utf8" }).split("\n");
    return lines.flatMap((line) => / T (\w+)$/.exec(line)?.[1] ?? []).sort();
  } catch {
    return undefined;
  }
}

test("the symbol table fits the header", () => {
  const header = readFileSync(join(root, "cuda/include/vecinfer.h"));
  assertEquals(ABI_HASH, createHash("sha256").update(header).digest("hex"));
  const declared = [...header.toString().matchAll(/^VI_API int32_t (\w+)\(/gm)].map(([, name]) => name);
  assertEquals(Object.keys(symbols), declared);
  assertEquals(VI_PAGE_TOKENS, 64);
  assertEquals(symbols.vi_rmsnorm, ["pointer", "pointer", "pointer", "pointer", "pointer", "f32", "i32", "i32"]);
  assertEquals(symbols.vi_copy_to_host, ["pointer", "buffer", "pointer", "i64"]);
});

for (const name of ["cpu", "cuda"] as const) {
  const path = name === "cpu" ? cpu.library : join(root, "cuda/build/cuda", libraryName("cuda"));
  const names = existsSync(path) ? exported(path) : undefined;
  const skip = names === undefined ? `no ${name} library, or no nm` : false;
  test(`the ${name} library exports the symbols of the table and no others`, { skip }, () => {
    assertEquals(names, Object.keys(symbols).sort());
  });
}

test("scripts/chores/symbols.ts --check passes, and --help explains", () => {
  const run = (...args: string[]) => {
    const prefix = "Deno" in globalThis ? ["run", "--allow-read", "--allow-env", "--allow-write"] : ["run"];
    return execFileSync(process.execPath, [...prefix, join(root, "scripts/chores/symbols.ts"), ...args], {
      encoding: "utf8",
    });
  };
  run("--check");
  assertStringIncludes(run("--help"), "usage:");
});

test("every function checks the number of its arguments", () => {
  for (const [name, kinds] of Object.entries(symbols)) {
    const call = cpu.native[name as keyof typeof symbols] as UntypedFunction;
    assertThrows(() => call(...kinds.slice(1)), TypeError, `${name} takes ${kinds.length} arguments`);
  }
});

test("every function but the first refuses a NULL context without a crash", () => {
  for (const [name, kinds] of Object.entries(symbols)) {
    if (kinds[0] !== "pointer") continue;
    const values = { i32: 1, i64: 1, f32: 1, buffer: null, pointer: null };
    const call = cpu.native[name as keyof typeof symbols] as UntypedFunction;
    assertEquals(call(...kinds.map((kind) => values[kind])), 1, name);
  }
});

test("a library is opened once a file", () => {
  assert(openLibrary("cpu") === cpu.native);
  assert(openLibrary("cpu", cpu.library) === cpu.native);
  assert(openLibrary("cpu", join(cpu.library, "..")) === cpu.native);
  withVariable(cpu.library, () => assert(openLibrary("cpu") === cpu.native));
});

test("a path that leads nowhere is the only one tried", () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-"));
  try {
    const file = join(folder, libraryName("cpu"));
    for (
      const [origin, open] of [
        ["option library", () => Device.open({ device: "cpu", library: folder })],
        ["VECINFER_LIB", () => withVariable(folder, () => Device.open({ device: "cpu" }))],
      ] as const
    ) {
      const error = assertThrows(open, VecInferError, "The cpu library of VecInfer cannot be opened. Tried:\n");
      assertEquals([error.code, error.status], ["LIBRARY", -1]);
      const lines = error.message.split("\n");
      assertEquals(lines.length, 3, error.message);
      assert(lines[1].startsWith(`  ${file} (${origin}): `), lines[1]);
      assertStringIncludes(lines[1], "No such file or directory");
      assertStringIncludes(lines[2], "bun run build cpu");
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("a file that is no library is named with the loader's reason", () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-"));
  try {
    const file = join(folder, "libother.so");
    execFileSync("cp", [join(root, "cuda/include/vecinfer.h"), file]);
    const error = assertThrows(() => openLibrary("cpu", file), VecInferError, file);
    assertStringIncludes(error.message, "invalid ELF header");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

const compiler = ["cc", "gcc", "clang"].find((name) => {
  try {
    execFileSync(name, ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
});

test("a library of another header is called stale", { skip: compiler ? false : "no C compiler" }, () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-"));
  try {
    const file = join(folder, libraryName("cpu"));
    const source = `#include <string.h>
      int vi_abi_hash(unsigned char* out, int capacity) { memset(out, 'a', 64); out[64] = 0; return capacity < 65; }`;
    execFileSync(compiler!, ["-shared", "-fPIC", "-x", "c", "-o", file, "-"], { input: source });
    const error = assertThrows(() => openLibrary("cpu", folder), VecInferError, `${file} (option library): is stale`);
    for (const part of ["aaaaaaaaaaaa", ABI_HASH.slice(0, 12), "Rebuild"]) assertStringIncludes(error.message, part);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

/** The part of Deno that runs a child with permissions of its own; node:child_process hands the parent's on. */
interface DenoCommand {
  Command: new (path: string, options: { args: string[] }) => { outputSync(): { stdout: Uint8Array } };
}

const deno = (globalThis as unknown as { Deno?: DenoCommand }).Deno;

test(
  "Deno's own error for a missing permission passes through",
  { skip: deno ? false : "permissions are Deno's" },
  () => {
    const folder = mkdtempSync(join(tmpdir(), "vecinfer-")), file = join(folder, "open.ts");
    try {
      const module = new URL("../lib/device.ts", import.meta.url).href;
      const lines = [
        `import { Device } from "${module}";`,
        `try { Device.open({ device: "cpu" }); } catch (error) { console.log(error.name, error.message); }`,
      ];
      writeFileSync(file, lines.join("\n"));
      const command = new deno!.Command(process.execPath, { args: ["run", "--no-prompt", "--no-check", file] });
      const text = new TextDecoder().decode(command.outputSync().stdout);
      assertStringIncludes(text, "NotCapable Requires ffi access");
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
);
