/**
 * The frame of every command-line script: options, `--help`, exit codes, interruption and progress.
 *
 * Exit codes: 0 done, 1 the work failed, 2 the command line is wrong, 130 interrupted.
 * Results go to stdout; errors and progress go to stderr, so that the output of `--json` stays one JSON object.
 *
 * @module
 */
import { createRequire } from "node:module";
import process from "node:process";
import { parseArgs } from "node:util";
import type { SingleBar } from "cli-progress";

/** One command-line option. A number option refuses what is not a finite number. */
export interface Option {
  /** What the option takes; a boolean takes no value. */
  readonly type: "string" | "number" | "boolean";
  /** One-letter form. */
  readonly short?: string;
  /** The value when the option is not given. */
  readonly default?: string | number | boolean;
  /** One line for `--help`. */
  readonly help: string;
}

/** The value a given option has after parsing. */
export type Value<O extends Option> =
  | (O["type"] extends "string" ? string : O["type"] extends "number" ? number : boolean)
  | (O extends { readonly default: string | number | boolean } ? never
    : O["type"] extends "boolean" ? never
    : undefined);

/** What a command is called and what it takes. An option called `json` silences progress. */
export interface Command<O extends Record<string, Option>> {
  /** Name in messages, e.g. `generate`. */
  readonly name: string;
  /** One line that says what the command does. */
  readonly summary: string;
  /** The line after `usage:`, e.g. `scripts/generate.ts [options] <prompt>`. */
  readonly usage: string;
  /** Options by long name; `--help` is always there. */
  readonly options: O;
  /** Fewest and most positional arguments; none are taken by default. */
  readonly positionals?: readonly [min: number, max: number];
}

/** What `run` receives. */
export interface Invocation<O extends Record<string, Option>> {
  /** Parsed options by long name. */
  readonly options: { readonly [K in keyof O]: Value<O[K]> };
  /** Positional arguments. */
  readonly positionals: readonly string[];
  /** Aborted at the first SIGINT; the second one ends the process. */
  readonly signal: AbortSignal;
  /** A progress display, silent under `--json`. */
  progress(label: string, total: number): Progress;
}

/** A running progress display. */
export interface Progress {
  /** Sets the finished amount, in the units of `total`. */
  update(done: number): void;
  /** Ends the display; the cursor is left on a fresh line. */
  stop(): void;
}

/** A wrong command line: the message, a hint at `--help`, exit code 2. */
export class UsageError extends Error {
  /** Always "UsageError". */
  override readonly name: string = "UsageError";
}

/** Parses the command line, runs the work and ends the process with the exit code. `run` may return one of its own. */
export async function command<const O extends Record<string, Option>>(
  spec: Command<O>,
  run: (invocation: Invocation<O>) => Promise<number | void> | number | void,
  argv: readonly string[] = process.argv.slice(2),
): Promise<void> {
  const interruption = new AbortController();
  const interrupt = (): void => {
    if (interruption.signal.aborted) process.exit(130);
    interruption.abort(new Error("interrupted"));
  };
  process.on("SIGINT", interrupt);
  // Who reads the output may stop at any time, as `head` does.
  process.stdout.on("error", gone);
  let code: number;
  try {
    const { help, ...arguments_ } = parse(spec, argv);
    if (help) {
      console.log(helpText(spec));
      code = 0;
    } else {
      const silent = (arguments_.options as Record<string, unknown>).json === true;
      code = await run({
        ...arguments_,
        signal: interruption.signal,
        progress: (label, total) => progress(label, total, silent),
      }) ?? 0;
    }
  } catch (error) {
    code = report(spec.name, error, interruption.signal.aborted);
  } finally {
    process.off("SIGINT", interrupt);
  }
  if (interruption.signal.aborted) code = 130;
  process.exitCode = code;
  // Open handles (a device, a server) must not keep a failed command alive. A finished one drains its output first.
  if (code !== 0) process.exit(code);
}

/** Ends the process where nobody reads its output any more. */
function gone(error: Error & { code?: string }): void {
  if (error.code !== "EPIPE") throw error;
  process.exit(0);
}

/** Prints an error the way the exit code says and returns that code. */
function report(name: string, error: unknown, aborted: boolean): number {
  if ((error as { code?: string }).code === "EPIPE") return 0;
  if (error instanceof UsageError) {
    console.error(`${name}: ${error.message}\nsee: ${name} --help`);
    return 2;
  }
  if (aborted) {
    console.error("interrupted");
    return 130;
  }
  const message = error instanceof Error ? error.message : String(error);
  console.error(`error: ${message}`);
  if (process.env.VECINFER_DEBUG && error instanceof Error) console.error(error.stack);
  return 1;
}

/** Parses `argv` by the command's options; throws {@link UsageError}. */
export function parse<const O extends Record<string, Option>>(
  spec: Command<O>,
  argv: readonly string[],
): { help: boolean; options: { readonly [K in keyof O]: Value<O[K]> }; positionals: string[] } {
  const options: Record<string, { type: "string" | "boolean"; short?: string }> = {
    help: { type: "boolean", short: "h" },
  };
  for (const [name, { type, short }] of Object.entries<Option>(spec.options)) {
    options[name] = { type: type === "boolean" ? "boolean" : "string", ...(short === undefined ? {} : { short }) };
  }
  let parsed: { values: Record<string, unknown>; positionals: string[] };
  try {
    parsed = parseArgs({ args: [...argv], options, allowPositionals: true, strict: true });
  } catch (error) {
    throw new UsageError((error as Error).message.split(". To specify")[0]);
  }
  const help = parsed.values.help === true;
  const values: Record<string, unknown> = {};
  for (const [name, option] of Object.entries<Option>(spec.options)) {
    const given = parsed.values[name];
    values[name] = given === undefined
      ? option.default ?? (option.type === "boolean" ? false : undefined)
      : option.type === "number"
      ? number(name, given as string)
      : given;
  }
  const [min, max] = spec.positionals ?? [0, 0];
  const count = parsed.positionals.length;
  if (!help && count > max) throw new UsageError(`unexpected argument '${parsed.positionals[max]}'`);
  if (!help && count < min) throw new UsageError(`an argument is missing; usage: ${spec.usage}`);
  return { help, options: values as { [K in keyof O]: Value<O[K]> }, positionals: parsed.positionals };
}

function number(name: string, text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new UsageError(`--${name} takes a number, not '${text}'`);
  return value;
}

/** The text of `--help`. */
function helpText<O extends Record<string, Option>>(spec: Command<O>): string {
  const all: [string, Option][] = [
    ...Object.entries<Option>(spec.options),
    ["help", { type: "boolean", short: "h", help: "print this text" }],
  ];
  const rows = all.map(([name, option]): [string, string] => {
    const short = option.short ? `-${option.short}, ` : "    ";
    const value = option.type === "boolean" ? "" : ` <${option.type === "number" ? "number" : "text"}>`;
    const standard = option.default === undefined || option.default === false ? "" : ` (default: ${option.default})`;
    return [`  ${short}--${name}${value}`, option.help + standard];
  });
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  return [
    `${spec.name}: ${spec.summary}`,
    "",
    `usage: ${spec.usage}`,
    "",
    ...rows.map(([left, right]) => left.padEnd(width) + right),
  ].join("\n");
}

/** Seconds between the lines of a progress display that is not a terminal. */
const LINE_INTERVAL = 5;

/** Shows progress on stderr: a bar on a terminal, else a line every few seconds, or nothing when `silent`. */
export function progress(label: string, total: number, silent: boolean = false): Progress {
  if (silent) return { update: () => {}, stop: () => {} };
  if (process.stderr.isTTY) return bar(label, total);
  const start = performance.now();
  let last = start;
  return {
    update(done: number): void {
      const now = performance.now();
      if (now - last < LINE_INTERVAL * 1000) return;
      last = now;
      const percent = Math.floor(100 * done / total);
      // A total of 1 is a share, which the percentage says.
      const amount = total === 1 ? "" : ` (${done}/${total})`;
      console.error(`${label}: ${percent} %${amount} after ${Math.round((now - start) / 1000)} s`);
    },
    stop: () => {},
  };
}

function bar(label: string, total: number): Progress {
  // Loaded on first use: the set-up uses this frame before any dependency is installed.
  const require = createRequire(import.meta.url);
  const { SingleBar } = require("cli-progress") as { SingleBar: new (options: unknown) => SingleBar };
  const display = new SingleBar({
    format: `${label} {bar} {percentage} % | ${
      total === 1 ? "" : "{value}/{total} | "
    }{duration_formatted}, {eta_formatted} left`,
    barCompleteChar: "█",
    barIncompleteChar: "░",
    barsize: 24,
    hideCursor: true,
    clearOnComplete: true,
    stopOnComplete: false,
    stream: process.stderr,
  });
  display.start(total, 0);
  return { update: (done) => display.update(done), stop: () => display.stop() };
}
