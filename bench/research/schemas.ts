/**
 * What the grammars of JSON schemas take and let through: schemas with instances of JSON-Schema-Test-Suite and of jsonschemabench,
 * whose folders are given. The suites are not part of the repository.
 *
 * An instance is tried as `JSON.stringify` writes it. Beside the suites' own instances, texts drawn from each grammar
 * are checked by ajv, where its folder is given: nothing that it refuses may be drawn.
 *
 * @module
 */

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import process from "node:process";
import { Grammar, type GrammarState } from "../../lib/grammar/grammar.ts";
import { json, SchemaError } from "../../lib/grammar/json_schema.ts";
import type { Rule } from "../../lib/grammar/rule.ts";
import { Vocabulary } from "../../lib/tokenizer/vocabulary.ts";
import { command, UsageError } from "../../scripts/frame/command.ts";

type Schema = boolean | Record<string, unknown>;
type Validate = (value: unknown) => boolean;

/** A schema with values that are valid or not. */
interface Case {
  readonly name: string;
  readonly schema: Schema;
  readonly tests: readonly { readonly data: unknown; readonly valid: boolean }[];
}

/** What came of a suite. */
interface Outcome {
  schemas: number;
  taken: number;
  valid: number;
  validThrough: number;
  invalid: number;
  invalidThrough: string[];
  drawn: number;
  drawnInvalid: string[];
  unfinished: number;
  refused: Map<string, number>;
  milliseconds: number[];
}

/** One token a byte. */
const END = 256;
const bytes = new Vocabulary(
  Object.fromEntries(Array.from({ length: 256 }, (_, byte) => [byteToken(byte), byte])),
  [{ id: END, content: "<end>", special: true }],
  { type: "ByteLevel" },
);

/** A byte in GPT-2's alphabet, which `Vocabulary` reads back. */
function byteToken(byte: number): string {
  const printable = (b: number) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  if (printable(byte)) return String.fromCharCode(byte);
  return String.fromCharCode(0x100 + Array.from({ length: byte }, (_, b) => b).filter((b) => !printable(b)).length);
}

/** Whether a text passes. */
function accepts(grammar: Grammar, text: string): boolean {
  const state = grammar.start();
  for (const byte of new TextEncoder().encode(text)) state.push(byte);
  return state.complete;
}

/** A text drawn from a grammar, or undefined where none ends within `most` bytes. */
function draw(grammar: Grammar, random: () => number, most: number): string | undefined {
  const state: GrammarState = grammar.start(), text: number[] = [];
  while (text.length < most) {
    const bias = state.bias(null), allowed = [...bias.keys()].filter((id) => bias[id] === 0 && id !== END);
    if (bias[END] === 0 && (allowed.length === 0 || random() < 0.5)) {
      return new TextDecoder().decode(Uint8Array.from(text));
    }
    if (allowed.length === 0) return undefined;
    // What closes strings, lists and objects is preferred, so that texts end.
    const closing = allowed.filter((id) => [0x22, 0x5d, 0x7d].includes(id));
    const from = closing.length > 0 && random() < 0.4 ? closing : allowed;
    const id = from[Math.floor(random() * from.length)];
    text.push(id);
    state.push(id);
  }
  return undefined;
}

function* testSuite(folder: string): Generator<Case> {
  const draft = join(folder, "tests/draft2020-12");
  for (const file of readdirSync(draft).filter((name) => name.endsWith(".json")).sort()) {
    for (const { description, schema, tests } of JSON.parse(readFileSync(join(draft, file), "utf8"))) {
      yield { name: `${file}: ${description}`, schema, tests };
    }
  }
}

function* schemaBench(folder: string): Generator<Case> {
  for (const file of readdirSync(folder).filter((name) => name.endsWith(".json")).sort()) {
    const text = readFileSync(join(folder, file), "utf8");
    let read: { schema: Schema; tests: Case["tests"] };
    try {
      read = JSON.parse(text);
    } catch {
      continue;
    }
    yield { name: file, schema: read.schema, tests: read.tests };
  }
}

/** A function that compiles a schema by ajv, or undefined for what it does not take. */
function validator(folder: string): (schema: Schema) => Validate | undefined {
  const require = createRequire(join(folder, "x.js"));
  const formats = require("ajv-formats").default;
  const make = (name: string) => {
    const Ajv = require(name).default;
    return () => formats(new Ajv({ strict: false, ownProperties: true, multipleOfPrecision: 9, logger: false }));
  };
  const drafts = [make("ajv/dist/2020"), make("ajv"), make("ajv-draft-04")];
  return (schema) => {
    const plain = typeof schema === "object" ? { ...schema, $schema: undefined } : schema;
    for (const ajv of drafts) {
      try {
        return ajv().compile(structuredClone(JSON.parse(JSON.stringify(plain))));
      } catch {
        continue;
      }
    }
    return undefined;
  };
}

function compile(schema: Schema, outcome: Outcome): Rule | undefined {
  const start = process.cpuUsage();
  try {
    return json(schema);
  } catch (error) {
    if (!(error instanceof SchemaError)) throw error;
    const what = error.message.replace(/^.*?( has "|\/\$ref|takes too|characters)/, "$1").replace(
      /at #\S*|#\/\S*/g,
      "#",
    ).slice(0, 70);
    outcome.refused.set(what, (outcome.refused.get(what) ?? 0) + 1);
    return undefined;
  } finally {
    const { user, system } = process.cpuUsage(start);
    outcome.milliseconds.push((user + system) / 1000);
  }
}

function tryCase(
  { name, schema, tests }: Case,
  outcome: Outcome,
  validate: ReturnType<typeof validator> | undefined,
  draws: number,
): void {
  outcome.schemas++;
  const rule = compile(schema, outcome);
  if (!rule) return;
  outcome.taken++;
  const grammar = new Grammar(rule, bytes, { size: 257, ends: [END] });
  // ajv is asked only where it matters: it takes longer than all else.
  let made: { check: Validate | undefined } | undefined;
  const check = (): Validate | undefined => (made ??= { check: validate?.(schema) }).check;
  for (const { data, valid } of tests) {
    const through = accepts(grammar, JSON.stringify(data));
    if (valid) {
      outcome.valid++;
      if (through) outcome.validThrough++;
    } else {
      outcome.invalid++;
      if (through && check()?.(data) !== true) {
        outcome.invalidThrough.push(`${name}: ${JSON.stringify(data).slice(0, 200)}`);
      }
    }
  }
  if (!validate || draws === 0 || !check()) return;
  // mulberry32
  let seed = 1;
  const random = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let x = Math.imul(seed ^ (seed >>> 15), seed | 1);
    x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < draws; i++) {
    const text = draw(grammar, random, 4000);
    if (text === undefined) outcome.unfinished++;
    else {
      outcome.drawn++;
      if (!check()!(JSON.parse(text))) outcome.drawnInvalid.push(`${name}: ${text.slice(0, 200)}`);
    }
  }
}

function quantile(values: readonly number[], part: number): string {
  return [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * part))].toFixed(1);
}

function report(title: string, outcome: Outcome): string {
  const { schemas, taken, valid, validThrough, invalid, drawn, milliseconds } = outcome;
  const refused = [...outcome.refused].sort((a, b) => b[1] - a[1]);
  return [
    `## ${title}`,
    "",
    "| | |",
    "|---|---|",
    `| schemas taken | ${taken} of ${schemas} |`,
    `| invalid instances let through | ${outcome.invalidThrough.length} of ${invalid} |`,
    `| valid instances let through | ${validThrough} of ${valid} |`,
    `| texts drawn from the grammars that ajv refuses | ${outcome.drawnInvalid.length} of ${drawn} |`,
    `| milliseconds of processor time to compile: median, 99 in 100, most | ${quantile(milliseconds, 0.5)}, ${
      quantile(milliseconds, 0.99)
    }, ${quantile(milliseconds, 1)} |`,
    "",
    "Why schemas were refused:",
    "",
    ...refused.slice(0, 25).map(([what, count]) => `- ${count}: \`${what.replaceAll("`", "'")}\``),
    "",
  ].join("\n");
}

await command({
  name: "schemas",
  summary: "what the grammars of JSON schemas take and let through, by two suites",
  usage: "bench/research/schemas.ts [options]",
  options: {
    suite: { type: "string", help: "folder of JSON-Schema-Test-Suite" },
    bench: { type: "string", help: "folder maskbench/data of jsonschemabench" },
    ajv: { type: "string", help: "folder in whose node_modules are ajv, ajv-formats and ajv-draft-04" },
    draws: { type: "number", default: 3, help: "texts drawn from each grammar" },
    every: { type: "number", default: 1, help: "tries each n-th schema only" },
    out: { type: "string", help: "file for the tables" },
    verbose: { type: "boolean", help: "lists what was let through and refused" },
  },
}, ({ options }) => {
  if (!options.suite && !options.bench) throw new UsageError("--suite or --bench is needed");
  const validate = options.ajv === undefined ? undefined : validator(options.ajv), tables: string[] = [];
  const suites: [string, Generator<Case>][] = [];
  if (options.suite) suites.push(["JSON-Schema-Test-Suite, draft 2020-12", testSuite(options.suite)]);
  if (options.bench) suites.push(["jsonschemabench", schemaBench(options.bench)]);
  let bad = 0;
  for (const [title, cases] of suites) {
    const outcome: Outcome = {
      schemas: 0,
      taken: 0,
      valid: 0,
      validThrough: 0,
      invalid: 0,
      invalidThrough: [],
      drawn: 0,
      drawnInvalid: [],
      unfinished: 0,
      refused: new Map(),
      milliseconds: [],
    };
    let index = 0;
    for (const each of cases) {
      if (index++ % options.every !== 0) continue;
      try {
        tryCase(each, outcome, validate, options.draws);
      } catch (error) {
        console.error(`${each.name}: ${error}`);
        bad++;
      }
    }
    tables.push(report(title, outcome));
    if (options.verbose) {
      console.error([...outcome.invalidThrough, ...outcome.drawnInvalid.map((text) => `drawn ${text}`)].join("\n"));
    }
    bad += outcome.invalidThrough.length + outcome.drawnInvalid.length;
  }
  const text = `# What grammars of JSON schemas take and let through\n\nWritten by \`bench/research/schemas.ts\`.\n\n${
    tables.join("\n")
  }`;
  if (options.out) writeFileSync(options.out, text);
  process.stdout.write(text);
  return bad > 0 ? 1 : 0;
});
