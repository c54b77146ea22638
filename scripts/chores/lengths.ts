/**
 * Checks the lengths of the native library's files and host functions, by the limits that `deno lint` keeps for TypeScript.
 * Prints those that are longer and exits with 1. Kernels and what runs inside them are left out.
 *
 * @module
 */
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { command } from "../frame/command.ts";
import { root } from "../frame/step.ts";
import { fileLength, FUNCTION_LINES, functionLength } from "./lint.ts";

/** A function of C++ or CUDA. */
export interface NativeFunction {
  /** What stands before its body, on one line. */
  readonly head: string;
  /** Number of its first line, from 1. */
  readonly line: number;
  /** Lines from the declaration to the closing brace. */
  readonly lines: number;
}

/** The same text with comments, strings and directives blank, so that braces and semicolons are code. Lines stay. */
function code(text: string): string {
  const blank = (part: string): string => part.replace(/[^\n]/g, " ");
  return text
    .replace(/\/\*[\s\S]*?\*\/|\/\/.*|R"(\w*)\([\s\S]*?\)\1"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'/g, blank)
    .replace(/^[ \t]*#(?:.*\\\n)*.*/gm, blank);
}

/** What stands around functions: its braces are passed through. */
const AROUND = /\b(?:namespace|struct|class|union|enum)\b|\bextern$/;

/**
 * The functions of a file. A lambda counts to the function it stands in. Throws where braces do not balance, as in two arms
 * of an `#if` that open the same one.
 */
export function nativeFunctions(text: string): NativeFunction[] {
  const source = code(text), found: NativeFunction[] = [];
  const lineAt = (at: number): number => source.slice(0, at).split("\n").length;
  // Outside of a body `start` is where the statement at hand begins; inside of one `depth` counts its open braces.
  let start = 0, depth = 0, around = 0, head = "";
  for (let at = 0; at < source.length; at++) {
    const char = source[at];
    if (depth > 0) {
      depth += char === "{" ? 1 : char === "}" ? -1 : 0;
      if (depth > 0) continue;
      const line = lineAt(start);
      if (head.includes(")")) found.push({ head, line, lines: lineAt(at) - line + 1 });
      start = at + 1;
    } else if (char === "{") {
      start += source.slice(start, at).search(/\S|$/);
      head = source.slice(start, at).trim().replace(/\s+/g, " ");
      const plain = head.replace(/^template <.*?> (?=\w)|alignas\(\w+\)/g, "");
      if (AROUND.test(plain) && !plain.includes("(")) [start, around] = [at + 1, around + 1];
      else depth = 1;
    } else if (char === ";" || char === "}") {
      start = at + 1;
      if (char === "}") around--;
    }
  }
  if (depth !== 0 || around !== 0) throw new Error("braces do not balance: give each arm of an #if whole blocks");
  return found;
}

/** One line for each file or host function of a native source that is too long. */
export function tooLong(path: string, text: string): string[] {
  const file = fileLength(text), found = file === undefined ? [] : [`${path}: ${file}`];
  try {
    for (const { head, line, lines } of nativeFunctions(text)) {
      if (lines <= FUNCTION_LINES || /__global__|__device__/.test(head)) continue;
      found.push(`${path}:${line}: ${functionLength(lines)}`);
    }
  } catch (error) {
    found.push(`${path}: ${(error as Error).message}`);
  }
  return found;
}

if (import.meta.main) {
  await command({
    name: "lengths",
    summary: "checks the lengths of native files and host functions",
    usage: "scripts/chores/lengths.ts",
    options: {},
  }, () => {
    const files = globSync("cuda/{include,common,cpu,kernels,tests}/**/*.{h,cpp,cu,cuh}", { cwd: root }).sort();
    const found = files.flatMap((file) => tooLong(file, readFileSync(join(root, file), "utf8")));
    for (const line of found) console.log(line);
    if (found.length === 0) console.log(`${files.length} files: none too long, and no function`);
    return found.length === 0 ? 0 : 1;
  });
}
