/**
 * Downloads a model from the Hugging Face hub into a folder: safetensors, configuration and tokenizer, or one GGUF file. What was
 * begun is continued, what is there is checked.
 *
 * @module
 */
import { join } from "node:path";
import process from "node:process";
import { pull, type PullProgress, readModelConfig } from "../mod.ts";
import { command, type Progress, UsageError } from "./frame/command.ts";

const MB = 1e6;

/** Files smaller than this are here before a bar could be read. */
const SHOWN_FROM = 4 * MB;

await command({
  name: "pull",
  summary: "download a model from the Hugging Face hub",
  usage: "scripts/pull.ts [options] <owner/name>",
  positionals: [1, 1],
  options: {
    gguf: {
      type: "string",
      short: "g",
      help: "one GGUF model of the repository: its path there, or Q4_K_M and the like",
    },
    revision: { type: "string", default: "main", help: "branch, tag or commit" },
    out: { type: "string", short: "o", help: "the folder (default: models/<name>)" },
    endpoint: { type: "string", default: "https://huggingface.co", help: "address of the hub or of a mirror" },
    offline: { type: "boolean", help: "fetch nothing, check what is in the folder" },
    "token-env": { type: "string", default: "HF_TOKEN", help: "environment variable that holds the access token" },
    json: { type: "boolean", help: "print the files as one JSON object" },
  },
}, async ({ options, positionals: [id], signal, progress }) => {
  if (!/^[\w.-]+\/[\w.-]+$/.test(id) || id.includes("..")) throw new UsageError(`'${id}' is not owner/name`);
  if (!/^https?:\/\/[^/]/.test(options.endpoint)) {
    throw new UsageError(`--endpoint takes an address like https://..., not '${options.endpoint}'`);
  }
  const tokenName = options["token-env"];
  const token = process.env[tokenName] || undefined;
  if (token === undefined && tokenName !== "HF_TOKEN") throw new UsageError(`the variable ${tokenName} is not set`);
  const folder = options.out ?? join("models", id.split("/")[1]);

  const tell = (line: string): void => options.json ? undefined : console.error(line);
  let bar: Progress | undefined;
  let shown = "";
  const onProgress = ({ file, step, bytes, size, cause }: PullProgress): void => {
    const key = `${step} ${file}`;
    if (shown !== key) bar?.stop();
    if (step === "retry") tell(`${file}: ${cause}; trying again`);
    else if (step === "done") tell(`${file}: ${size} bytes, checked`);
    else {
      if (shown !== key) bar = size < SHOWN_FROM ? undefined : progress(`${key} (MB)`, Math.ceil(size / MB));
      bar?.update(Math.floor(bytes / MB));
    }
    shown = key;
  };
  let result;
  try {
    const { gguf, revision, endpoint, offline } = options;
    result = await pull({ id, folder, gguf, revision, endpoint, offline, token, signal, onProgress });
  } catch (error) {
    if (signal.aborted) tell(`${folder}: what has arrived is kept; the same command goes on from there`);
    throw error;
  } finally {
    bar?.stop();
  }

  if (options.json) return console.log(JSON.stringify(result));
  const unchecked = result.files.length === 0 ? " (no record of its download: structure checked, not checksums)" : "";
  console.log(`${result.model}: ${id} is complete${unchecked}`);
  try {
    readModelConfig(result.model);
  } catch (error) {
    console.error(`note: VecInfer cannot run this model: ${(error as Error).message}`);
  }
});
