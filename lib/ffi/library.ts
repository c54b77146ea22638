/**
 * Finds, opens and checks the native library.
 *
 * @module
 */
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import meta from "../../deno.json" with { type: "json" };
import { runtime as bun } from "./bun.ts";
import { runtime as deno } from "./deno.ts";
import { VecInferError } from "./error.ts";
import { checked, type Kind, type Native, type Runtime, type UntypedFunction } from "./native.ts";
import { ABI_HASH, symbols } from "./symbols.ts";

/** Which of the two libraries. */
export type Backend = "cpu" | "cuda";

/** The FFI of the runtime that this runs under. */
export const runtime: Runtime = "Bun" in globalThis ? bun : deno;

const opened = new Map<string, Native>();

/** A place where a library may be. */
interface Candidate {
  path: string;
  origin: string;
}

/** The variable's value, or undefined where it is not set or may not be read. */
function environment(name: string): string | undefined {
  try {
    return process.env[name] || undefined;
  } catch {
    return undefined; // Deno without --allow-env for it
  }
}

/** The file name of a library on this system, e.g. `libvecinfer_cpu.so`. */
export function libraryName(backend: Backend): string {
  switch (process.platform) {
    case "darwin":
      return `libvecinfer_${backend}.dylib`;
    case "win32":
      return `vecinfer_${backend}.dll`;
    default:
      return `libvecinfer_${backend}.so`;
  }
}

/** The folder of the user's cache where this version looks for a library; undefined without a home folder. */
function libraryCache(backend: Backend): string | undefined {
  const home = environment("HOME") ?? environment("USERPROFILE");
  const cache = environment("XDG_CACHE_HOME") ?? (home && join(home, ".cache"));
  return cache && join(cache, "vecinfer", meta.version, `${process.platform}-${process.arch}-${backend}`);
}

/** A path that was given: a library file, or a folder with one. */
function given(path: string, origin: string, backend: Backend): Candidate[] {
  return [{ path: /\.(so|dylib|dll)$/.test(path) ? path : join(path, libraryName(backend)), origin }];
}

/** Where to look, best first. A path that was given is the only one: another library in its place would be a surprise. */
function candidates(backend: Backend, path: string | undefined): Candidate[] {
  if (path !== undefined) return given(path, "option library", backend);
  const variable = environment("VECINFER_LIB");
  if (variable !== undefined) return given(variable, "VECINFER_LIB", backend);
  const found: Candidate[] = [];
  if (import.meta.url.startsWith("file:")) {
    const build = fileURLToPath(new URL(`../../cuda/build/${backend}/`, import.meta.url));
    found.push({ path: join(build, libraryName(backend)), origin: "local build" });
  }
  const cache = libraryCache(backend);
  if (cache !== undefined) found.push({ path: join(cache, libraryName(backend)), origin: "user cache" });
  return found;
}

/** The ABI hash that a library was built with, or why there is none. */
function abiHash(path: string): string {
  const name = "vi_abi_hash";
  const { vi_abi_hash } = runtime.open(path, { [name]: symbols[name] });
  const text = new Uint8Array(65);
  const status = vi_abi_hash(text, text.length);
  if (status !== 0) throw new Error(`vi_abi_hash returns status ${status}`);
  return textOf(text);
}

/** The text before the first NUL. */
export function textOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end));
}

/** Opens one file. Throws the runtime's error, or one about the ABI. */
/**
 * OpenMP's threads spin for milliseconds at every barrier unless told otherwise before its library loads. On a machine
 * that does other work as well, that takes the very core that the late thread needs: decode of the embedded model fell
 * from hundreds of tokens a second to 3. Some 40 us of spinning cover the gaps inside a step; then the thread sleeps.
 * A GOMP_SPINCOUNT that the user has set stays.
 */
function limitSpinning(): void {
  const text = (value: string): Uint8Array => new TextEncoder().encode(`${value}\0`);
  try {
    const { setenv } = runtime.open("libc.so.6", { setenv: ["buffer", "buffer", "i32"] });
    setenv(text("GOMP_SPINCOUNT"), text("2000"), 0);
  } catch {
    // Another C library: its OpenMP keeps its own way of waiting.
  }
}

function open(path: string): Native {
  if (opened.size === 0) limitSpinning();
  const hash = abiHash(path);
  if (hash !== ABI_HASH) {
    throw new Error(
      `is stale: it was built with another cuda/include/vecinfer.h (SHA-256 ${hash.slice(0, 12)}...) than ` +
        `lib/ffi/symbols.ts (${
          ABI_HASH.slice(0, 12)
        }...). Rebuild it; if the header has changed, run scripts/chores/symbols.ts first`,
    );
  }
  const calls = runtime.open(path, symbols as Record<string, readonly Kind[]>);
  const functions: Record<string, UntypedFunction> = {};
  for (const [name, kinds] of Object.entries(symbols)) functions[name] = checked(name, kinds.length, calls[name]);
  return { ...functions, path } as unknown as Native;
}

/**
 * Opens the library of a backend, once per file; it is never closed.
 *
 * Tried in this order: `path`, or else the variable VECINFER_LIB (each a library file or a folder with one, and then the
 * only place), or else the local build in `cuda/build/` and the user's cache. Throws VecInferError (LIBRARY) with every
 * path and what is wrong with it. Deno's NotCapable, where permission for FFI is missing, passes through.
 */
export function openLibrary(backend: Backend, path?: string): Native {
  if (!("Bun" in globalThis) && !("Deno" in globalThis)) {
    throw new VecInferError(
      "LIBRARY",
      "VecInfer calls its native library through the FFI of Deno or Bun; run it with one",
    );
  }
  const tried: string[] = [];
  for (const candidate of candidates(backend, path)) {
    const known = opened.get(candidate.path);
    if (known !== undefined) return known;
    try {
      const native = open(candidate.path);
      opened.set(candidate.path, native);
      return native;
    } catch (error) {
      if (!(error instanceof Error) || error.name === "NotCapable" || error.name === "PermissionDenied") throw error;
      // Both runtimes lead with phrases of their own and may name the path again.
      const reason = error.message.replace(/^(Could not open library: |Failed to open library "[^"]*": )+/, "")
        .replace(`${candidate.path}: `, "");
      tried.push(`  ${candidate.path} (${candidate.origin}): ${reason}`);
    }
  }
  const places = tried.length > 0 ? tried.join("\n") : "  nowhere: neither a local build nor a home folder is known";
  throw new VecInferError(
    "LIBRARY",
    `The ${backend} library of VecInfer cannot be opened. Tried:\n${places}\n` +
      `Build it with \`npx -y bun run build ${backend}\` in a checkout, or set VECINFER_LIB to a library or to its folder.`,
  );
}
