/**
 * Writes `lib/ffi/symbols.ts` from `cuda/include/vecinfer.h`: the symbol table, the constants and the ABI hash.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { command } from "../frame/command.ts";
import { root } from "../frame/step.ts";

const HEADER = "cuda/include/vecinfer.h";
const OUTPUT = "lib/ffi/symbols.ts";
const LINE_WIDTH = 120;

/** The kind of one C parameter, e.g. `const float* x` is a "pointer". Throws on a type outside the header's dialect. */
function kind(parameter: string, declaration: string): string {
  if (parameter.includes("*")) return /\buint8_t\s*\*/.test(parameter) ? "buffer" : "pointer";
  const type = parameter.trim().replace(/\s+\w+$/, "");
  const kinds: Record<string, string> = { int32_t: "i32", int64_t: "i64", float: "f32" };
  if (!(type in kinds)) {
    throw new Error(`${HEADER}: ${declaration}: "${parameter.trim()}" is not in the header's dialect`);
  }
  return kinds[type];
}

/** A property of an object literal, laid out as `deno fmt` does. */
function property(name: string, kinds: string[]): string {
  const quoted = kinds.map((k) => `"${k}"`);
  const line = `  ${name}: [${quoted.join(", ")}],`;
  return line.length <= LINE_WIDTH ? line : `  ${name}: [\n${quoted.map((k) => `    ${k},\n`).join("")}  ],`;
}

/** The text of `lib/ffi/symbols.ts` for a header. */
function generate(header: string): string {
  const hash = createHash("sha256").update(header).digest("hex");
  const constants = [...header.matchAll(/^#define (VI_\w+) (\d+)[ \t]*(?:\/\*(.*?)\*\/)?/gm)].map(
    ([, name, value, comment]) =>
      `/** ${comment?.trim() ?? `\`${name}\` of vecinfer.h.`} */\nexport const ${name} = ${value};`,
  );
  const code = header.replace(/\/\*[\s\S]*?\*\//g, "");
  const functions = [...code.matchAll(/^VI_API\s+(.*?)\s*(\w+)\s*\(([^)]*)\)\s*;/gm)].map(
    ([text, result, name, list]) => {
      if (result !== "int32_t") throw new Error(`${HEADER}: ${name} returns ${result}, not an int32_t status`);
      return property(name, list.split(",").map((parameter) => kind(parameter, text)));
    },
  );
  if (functions.length !== (code.match(/^VI_API\b/gm) ?? []).length) {
    throw new Error(`${HEADER}: a declaration that begins with VI_API was not understood`);
  }
  return `/**
 * The C ABI as data. Generated from ${HEADER} by scripts/chores/symbols.ts: run that instead of editing this file.
 *
 * @module
 */

/** SHA-256 of the header, as \`vi_abi_hash\` of a library that fits reports it. */
export const ABI_HASH = "${hash}";

${constants.join("\n")}

/** Parameter kinds of every function. "buffer" is host memory, "pointer" a device address or a handle. All return i32. */
export const symbols = {
${functions.join("\n")}
} as const;
`;
}

await command({
  name: "symbols",
  summary: `writes ${OUTPUT} from ${HEADER}`,
  usage: "scripts/chores/symbols.ts [--check]",
  options: { check: { type: "boolean", help: "write nothing; exit with 1 if the file is not what would be written" } },
}, ({ options }) => {
  const text = generate(readFileSync(join(root, HEADER), "utf8")), path = join(root, OUTPUT);
  if (!options.check) return writeFileSync(path, text);
  if (existsSync(path) && readFileSync(path, "utf8") === text) return;
  throw new Error(`${OUTPUT} does not fit ${HEADER}: run scripts/chores/symbols.ts and commit the result`);
});
