/**
 * Reading JSON files that others wrote: every failure is a {@link WeightsError} that names the file.
 *
 * @module
 */

import { readFileSync } from "node:fs";

/** A file of a model is missing, unreadable, malformed or not supported. The message names the file and the cause. */
export class WeightsError extends Error {
  /** Always "WeightsError". */
  override readonly name: string = "WeightsError";
}

/** How a Git LFS pointer begins, which stands in a repository for a large file until that is fetched. */
const LFS_POINTER = "version https://git-lfs.github.com/spec/";

/** Throws WeightsError where a file's first bytes are those of a Git LFS pointer. */
export function refuseLfsPointer(path: string, head: Uint8Array): void {
  if (new TextDecoder().decode(head.subarray(0, LFS_POINTER.length)) !== LFS_POINTER) return;
  throw new WeightsError(
    `${path}: is a Git LFS pointer, not the file that it stands for; run "git lfs pull" in its repository, or download the file`,
  );
}

/** A JSON object. */
export type JsonObject = Record<string, unknown>;

/** Whether a value is a JSON object (no array, not null). */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The cause in an error of the file system, in words. */
export function fileErrorCause(error: unknown): string {
  const { code, message } = error as { code?: string; message?: string };
  switch (code) {
    case "ENOENT":
      return "no such file";
    case "ENOTDIR":
      return "a part of the path is not a folder";
    case "EACCES":
    case "EPERM":
      return "permission denied";
    case "EISDIR":
      return "is a folder, not a file";
    case "ENOSPC":
      return "no space left on the device";
    default:
      return message ?? String(error);
  }
}

/** Decodes UTF-8 and parses a JSON object without duplicate keys. `path` and `what` are for the message. */
export function parseObject(bytes: Uint8Array, path: string, what: string): JsonObject {
  refuseLfsPointer(path, bytes);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new WeightsError(`${path}: ${what} is not valid UTF-8`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new WeightsError(`${path}: ${what} is not valid JSON: ${(error as Error).message}`);
  }
  if (!isObject(value)) throw new WeightsError(`${path}: ${what} is not a JSON object`);
  const key = forbiddenKey(text);
  if (key !== undefined) {
    const cause = key === "__proto__" ? "holds the forbidden key" : "holds twice the key";
    throw new WeightsError(`${path}: ${what} ${cause} ${JSON.stringify(key)}`);
  }
  return value;
}

/** Reads a JSON file that holds one object. */
export function readObject(path: string): JsonObject {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    throw new WeightsError(`${path}: ${fileErrorCause(error)}`);
  }
  return parseObject(bytes, path, "the file");
}

/**
 * The first key that occurs twice in one object, or is `__proto__`. JSON.parse keeps the last of two equal keys without
 * a word, so that a file could show one tensor to a checker and another to the runtime. `text` is valid JSON.
 */
function forbiddenKey(text: string): string | undefined {
  const keys: (Set<string> | undefined)[] = [];
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === "{") keys.push(new Set());
    else if (character === "[") keys.push(undefined);
    else if (character === "}" || character === "]") keys.pop();
    else if (character === '"') {
      const start = i;
      for (i++; text[i] !== '"'; i++) if (text[i] === "\\") i++;
      let next = i + 1;
      while (next < text.length && " \t\r\n".includes(text[next])) next++;
      if (text[next] !== ":") continue;
      const key = JSON.parse(text.slice(start, i + 1)) as string;
      const seen = keys.at(-1);
      if (key === "__proto__" || seen?.has(key)) return key;
      seen?.add(key);
    }
  }
  return undefined;
}
