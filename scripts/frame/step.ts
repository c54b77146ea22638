/**
 * A step of the set-up: one long command under a lock, with its progress on stderr. Needs no dependency.
 *
 * @module
 */
import { spawn } from "node:child_process";
import {
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { delimiter, join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** The root folder of the project. */
export const root: string = resolve(fileURLToPath(new URL("../..", import.meta.url)));

/** The full path of a program on the PATH, if it is there. */
export function which(program: string): string | undefined {
  if (program.includes("/")) return existsSync(program) ? program : undefined;
  return (process.env.PATH ?? "").split(delimiter).map((folder) => join(folder, program)).find(existsSync);
}

/** Lines of a failed command's output that are shown. */
const TAIL = 60;
/** Seconds between the lines of a step where stderr is no terminal. */
const LINE_INTERVAL = 10;

/** Runs a command with its last line of output live on stderr; a failure throws with the end of its output. */
export async function step(label: string, program: string, args: readonly string[], cwd: string): Promise<void> {
  const start = performance.now();
  const live = process.stderr.isTTY === true;
  const output: string[] = [];
  const show = (final: boolean): void => {
    const text = `${label}, ${Math.round((performance.now() - start) / 1000)} s`;
    if (!live) return console.error(final ? `${text}: done` : `${text}: ${output.at(-1) ?? "..."}`);
    const line = final ? `${text}: done` : `${text}: ${output.at(-1) ?? ""}`;
    process.stderr.write(`\r\x1b[K${line.slice(0, (process.stderr.columns ?? 80) - 1)}${final ? "\n" : ""}`);
  };
  if (!live) console.error(`${label} ...`);
  const timer = setInterval(() => show(false), live ? 200 : LINE_INTERVAL * 1000);
  try {
    const code = await new Promise<number | string>((done, fail) => {
      const child = spawn(program, args, { cwd, stdio: ["ignore", "pipe", "pipe"] });
      let partial = "";
      const collect = (chunk: string): void => {
        const lines = (partial + chunk).split("\n");
        partial = lines.pop()!;
        for (const line of lines) if (line.trim()) output.push(line.trimEnd());
        output.splice(0, output.length - 10 * TAIL);
      };
      child.stdout.setEncoding("utf8").on("data", collect);
      child.stderr.setEncoding("utf8").on("data", collect);
      child.on("error", fail);
      child.on("close", (code, signal) => {
        if (partial.trim()) output.push(partial.trimEnd());
        done(code ?? signal ?? 1);
      });
    });
    if (code !== 0) {
      if (live) process.stderr.write("\r\x1b[K");
      const command = `${program} ${args.join(" ")}`;
      throw new Error(`${label} failed (${command}: ${code})\n${output.slice(-TAIL).join("\n")}`);
    }
    show(true);
  } finally {
    clearInterval(timer);
  }
}

/** Milliseconds without a sign of life after which a lock counts as left behind. */
const LOCK_LIFE = 60_000;

/** Does the work while holding a lock file, so that two set-ups of one tree take turns. */
export async function exclusive<T>(work: () => Promise<T>): Promise<T> {
  const folder = join(root, "cuda", "build");
  const lock = join(folder, ".lock");
  const own = `${lock}.${process.pid}`;
  mkdirSync(folder, { recursive: true });
  writeFileSync(own, String(process.pid));
  let told = false;
  while (!take(own, lock)) {
    const holder = read(lock);
    if (holder !== undefined && !alive(holder, lock)) {
      // Only one of several waiters moves the dead lock away. A lock taken meanwhile is put back.
      const dead = `${own}.dead`;
      rename(lock, dead);
      const moved = read(dead);
      if (moved !== undefined && moved !== holder) take(dead, lock);
      rmSync(dead, { force: true });
      continue;
    }
    if (!told) console.error(`waiting for another set-up of this folder (process ${holder})`);
    told = true;
    await new Promise((done) => setTimeout(done, 200));
  }
  const heartbeat = setInterval(() => utimesSync(own, new Date(), new Date()), LOCK_LIFE / 10);
  const release = (): void => {
    rmSync(lock, { force: true });
    rmSync(own, { force: true });
  };
  process.on("exit", release);
  try {
    return await work();
  } finally {
    clearInterval(heartbeat);
    release();
    process.off("exit", release);
  }
}

/** Links `own` to `lock`: the file and its content appear in one step, or the lock is taken. */
function take(own: string, lock: string): boolean {
  try {
    linkSync(own, lock);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    return false;
  }
}

function rename(from: string, to: string): void {
  try {
    renameSync(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
}

function read(path: string): number | undefined {
  try {
    return Number(readFileSync(path, "utf8"));
  } catch {
    return undefined;
  }
}

function alive(pid: number, lock: string): boolean {
  try {
    process.kill(pid, 0);
    return Date.now() - statSync(lock).mtimeMs < LOCK_LIFE;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
