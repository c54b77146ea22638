/**
 * Rewrites a GGUF file with its matrices in another type.
 *
 * @module
 */

import { statSync } from "node:fs";
import { command, UsageError } from "./frame/command.ts";
import { rewriteGguf } from "./frame/gguf.ts";
import { bytesText } from "./frame/options.ts";

await command({
  name: "gguf",
  summary: "rewrites a GGUF file with its matrices in another type",
  usage: "scripts/gguf.ts [options] <in.gguf> <out.gguf>",
  positionals: [2, 2],
  options: {
    type: { type: "string", short: "t", default: "Q8_0", help: "F16 or Q8_0" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, ({ options, positionals }) => {
  const { type } = options;
  if (type !== "F16" && type !== "Q8_0") throw new UsageError(`--type is "${type}"; F16 or Q8_0 is needed`);
  const [from, path] = positionals;
  rewriteGguf(from, path, type);
  const bytes = statSync(path).size;
  console.log(options.json ? JSON.stringify({ path, type, bytes }) : `${path} (${bytesText(bytes)})`);
});
