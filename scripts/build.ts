/**
 * Builds the native library with a CMake preset, unless nothing it is built from has changed. Needs no dependency.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { arch, availableParallelism, cpus } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { command, UsageError } from "./frame/command.ts";
import { exclusive, root, step, which } from "./frame/step.ts";

/** A preset of cuda/CMakePresets.json. */
export type Preset = "cpu" | "cpu-sanitize" | "cuda";

const presets: Record<Preset, { library: string; label: string }> = {
  "cpu": { library: "libvecinfer_cpu.so", label: "building the CPU library" },
  "cpu-sanitize": { library: "libvecinfer_cpu.so", label: "building the CPU library with sanitizers" },
  "cuda": { library: "libvecinfer_cuda.so", label: "building the CUDA library" },
};

const source = join(root, "cuda");

/** Builds a preset when its sources, compiler or machine changed. Returns the path of the library and whether it ran. */
export async function build(preset: Preset): Promise<{ library: string; built: boolean }> {
  const folder = join(source, "build", preset);
  const library = join(folder, presets[preset].library);
  const stamp = join(folder, ".stamp");
  const current = (): boolean => existsSync(library) && read(stamp) === `${machine()}\n${sources()}\n`;
  if (current()) return { library, built: false };
  return await exclusive(async () => {
    if (current()) return { library, built: false };
    requireTools(preset);
    // A build folder of another machine, or of this tree under another path, cannot be continued.
    const [was] = read(stamp)?.split("\n") ?? [];
    const cache = read(join(folder, "CMakeCache.txt"));
    const moved = cache !== undefined && !cache.includes(`\nCMAKE_HOME_DIRECTORY:INTERNAL=${source}\n`);
    if (moved || (was !== undefined && was !== machine())) rmSync(folder, { recursive: true, force: true });
    const before = sources();
    const { label } = presets[preset];
    if (!existsSync(join(folder, "CMakeCache.txt"))) {
      await step(`${label}: configure`, "cmake", ["--preset", preset], source);
    }
    await step(label, "cmake", ["--build", "--preset", preset, "--parallel", String(availableParallelism())], source);
    if (!existsSync(library)) throw new Error(`the CMake preset ${preset} made no ${library}`);
    writeFileSync(stamp, `${machine()}\n${before}\n`);
    return { library, built: true };
  });
}

/** Throws one line that names every missing tool and how to get it. */
function requireTools(preset: Preset): void {
  const compiler = [process.env.CXX?.split(" ")[0], "c++", "g++", "clang++"].some((name) => name && which(name));
  const missing = [
    which("cmake") ? undefined : ["CMake 3.22 or newer", "cmake"],
    compiler ? undefined : ["a C++20 compiler (GCC 11, Clang 14 or newer)", "g++"],
    which("make") || process.env.CMAKE_GENERATOR ? undefined : ["make", "make"],
  ].filter((tool) => tool !== undefined);
  if (missing.length > 0) {
    const names = missing.map(([name]) => name).join(" and ");
    const packages = missing.map(([, name]) => name).join(" ");
    throw new Error(`missing: ${names}; on Debian or Ubuntu install with: apt-get install ${packages}`);
  }
  if (preset === "cuda" && nvcc() === undefined) {
    throw new Error("missing: nvcc; install the CUDA toolkit (12.4 or newer) and put its bin folder on the PATH");
  }
}

/** The path of the CUDA compiler, if there is one. */
export function nvcc(): string | undefined {
  const homes = [process.env.CUDA_PATH, process.env.CUDA_HOME, "/usr/local/cuda"].filter((home) => home !== undefined);
  return which("nvcc") ?? homes.map((home) => join(home, "bin", "nvcc")).find(existsSync);
}

/** What else than the sources decides the library's content: code is made for this processor by this compiler. */
function machine(): string {
  const { CC, CXX, CFLAGS, CXXFLAGS, CUDACXX, CMAKE_GENERATOR } = process.env;
  return hash(JSON.stringify([source, arch(), cpus()[0]?.model, CC, CXX, CFLAGS, CXXFLAGS, CUDACXX, CMAKE_GENERATOR]));
}

/** A hash over the path and content of every file the libraries are built from. */
function sources(): string {
  const isSource = (path: string): boolean =>
    /\.(c|h|cpp|cu|cuh|cmake)$|CMakeLists\.txt$|CMakePresets\.json$/.test(path) && !path.startsWith("build/");
  const files = readdirSync(source, { withFileTypes: true })
    .flatMap((entry) =>
      entry.isDirectory() && entry.name !== "build"
        ? (readdirSync(join(source, entry.name), { recursive: true }) as string[]).map((file) => join(entry.name, file))
        : [entry.name]
    );
  return hash(files.filter(isSource).sort().map((file) => `${file} ${hash(readFileSync(join(source, file)))}`).join());
}

function hash(content: string | Uint8Array): string {
  return createHash("sha256").update(content).digest("hex");
}

function read(path: string): string | undefined {
  return existsSync(path) ? readFileSync(path, "utf8") : undefined;
}

/** The preset of that name; a {@link UsageError} when there is none. */
export function preset(name: string): Preset {
  if (name in presets) return name as Preset;
  throw new UsageError(`there is no preset '${name}'; there are ${Object.keys(presets).join(", ")}`);
}

if (import.meta.main) {
  await command({
    name: "build",
    summary: "builds the native library: cpu (default), cpu-sanitize or cuda",
    usage: "scripts/build.ts [cpu|cpu-sanitize|cuda]...",
    options: {},
    positionals: [0, 3],
  }, async ({ positionals }) => {
    const names = positionals.length > 0 ? positionals.map(preset) : ["cpu" as const];
    for (const name of names) {
      const { library, built } = await build(name);
      console.log(built ? library : `up to date: ${library}`);
    }
  });
}
