/**
 * Download of a model from the Hugging Face hub (or a mirror with the same interface) into a folder.
 *
 * `GET {endpoint}/api/models/{id}/tree/{revision}?recursive=true` lists the files with their sizes and checksums,
 * `GET {endpoint}/{id}/resolve/{revision}/{file}` gives their bytes. A file is written to `{file}.part`, checked, and
 * renamed: what carries its own name is whole.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { createReadStream, existsSync, mkdirSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { dirname, join } from "node:path";
import { ggufFiles, isGgufFile } from "./gguf_files.ts";
import { exclusively } from "./lock.ts";
import { Gguf } from "../weights/gguf.ts";
import { fileErrorCause, isObject, readObject, WeightsError } from "../weights/json.ts";
import { openModel } from "../weights/safetensors.ts";
import { transfer, type TransferOptions } from "./transfer.ts";

/** A file of a repository, as the hub lists it. */
export type HubFile = Omit<PulledFile, "outcome">;

/** Where a download stands. */
export interface PullProgress {
  /** The file. */
  readonly file: string;
  /** "download" while bytes arrive, "verify" while its checksum is taken, "done" once it is whole. */
  readonly step: "download" | "verify" | "done" | "retry";
  /** Bytes of the file that are here or checked. */
  readonly bytes: number;
  /** Bytes of the whole file. */
  readonly size: number;
  /** For "retry": what went wrong. */
  readonly cause?: string;
}

/** What to download, and how. A pull that its signal stops goes on from there the next time. */
export interface PullOptions extends TransferOptions {
  /** The repository, `owner/name`. */
  readonly id: string;
  /** The folder; made where it is missing. */
  readonly folder: string;
  /**
   * One GGUF model of the repository in place of a model folder: its path there, or the quantization that its name says ("Q4_K_M"). Parts
   * of a split one come together.
   */
  readonly gguf?: string;
  /** Branch, tag or commit. Default "main". */
  readonly revision?: string;
  /** The hub's address. Default "https://huggingface.co". */
  readonly endpoint?: string;
  /** Only check what is in the folder; nothing is fetched. */
  readonly offline?: boolean;
  /** Called as bytes arrive. */
  readonly onProgress?: (progress: PullProgress) => void;
}

/** A file of a repository, and what {@link pull} did with it. */
export interface PulledFile {
  /** Its name; of a model folder only files at the top of the repository are taken. */
  readonly path: string;
  /** Bytes. */
  readonly size: number;
  /** SHA-256 of the contents, of large files. */
  readonly sha256?: string;
  /** SHA-1 of the git blob `"blob " + size + "\0" + contents`, of small files. */
  readonly gitSha1?: string;
  /** "present": it was there and right; "downloaded"; "resumed": downloaded from where an earlier pull stopped. */
  readonly outcome: "present" | "downloaded" | "resumed";
}

/** What a pull left in the folder. */
export interface PullResult {
  /** The folder. */
  readonly folder: string;
  /** What opens the model: the folder, or the GGUF file. */
  readonly model: string;
  /** The files of the model. Empty where an offline pull found no record of a download: then only structure was checked. */
  readonly files: readonly PulledFile[];
}

/** The record of a pull, kept in the folder for offline checks. */
const RECORD = ".pull.json";

const NEEDED = ["config.json", "tokenizer.json"];
const OPTIONAL = [
  "generation_config.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
  "model.safetensors.index.json",
];

/** Whether a file of a repository belongs to what the runtime reads: safetensors, configuration and tokenizer. */
export function isModelFile(path: string): boolean {
  return NEEDED.includes(path) || OPTIONAL.includes(path) || /^model(-\d+-of-\d+)?\.safetensors$/.test(path);
}

/**
 * Brings a folder to hold a model: lists, downloads what is missing or wrong, goes on with what was begun, and checks
 * sizes and checksums. Throws {@link WeightsError} that names the file or address and the cause; throws the signal's
 * reason where it was stopped.
 */
export async function pull(options: PullOptions): Promise<PullResult> {
  if (!/^[\w.-]+\/[\w.-]+$/.test(options.id) || options.id.includes("..")) {
    throw new WeightsError(`${options.id}: not the name of a repository; expected owner/name`);
  }
  if (options.offline) return await checkFolder(options);
  try {
    mkdirSync(options.folder, { recursive: true });
  } catch (error) {
    throw new WeightsError(`${options.folder}: cannot be made: ${fileErrorCause(error)}`);
  }
  return await exclusively(join(options.folder, ".pull.lock"), async () => {
    const listed = await listFiles(options);
    const files: PulledFile[] = [];
    for (const file of listed) files.push({ ...file, outcome: await pullFile(file, options) });
    const { id, folder, revision = "main" } = options, others = otherFiles(options, listed);
    writeFileSync(
      join(folder, RECORD),
      JSON.stringify({ id, revision, files: [...listed, ...others] }, null, 1) + "\n",
    );
    return { folder, model: checkStructure(folder, options.gguf === undefined ? undefined : listed), files };
  });
}

/** What opens the model of a folder, or of GGUF files in it. Throws WeightsError where its head is not right. */
function checkStructure(folder: string, gguf: readonly HubFile[] | undefined): string {
  if (gguf === undefined) {
    openModel(folder).close();
    return folder;
  }
  const path = join(folder, gguf.map(({ path }) => path).sort()[0]);
  Gguf.open(path).close();
  return path;
}

/** What earlier pulls of other GGUF models of the repository left in the folder. */
function otherFiles({ id, folder, revision = "main", gguf }: PullOptions, listed: readonly HubFile[]): HubFile[] {
  const path = join(folder, RECORD);
  if (gguf === undefined || !existsSync(path)) return [];
  const record = readObject(path);
  if (record.id !== id || record.revision !== revision || !Array.isArray(record.files)) return [];
  const names = new Set(listed.map(({ path }) => path));
  return (record.files as HubFile[]).filter(({ path }) => isGgufFile(path) && !names.has(path));
}

/** The files of a repository that belong to the model. Refuses a listing with a name that would leave the folder. */
async function listFiles(options: PullOptions): Promise<HubFile[]> {
  const { id } = options;
  const all: HubFile[] = [];
  let url: string | undefined = `${endpoint(options)}/api/models/${id}/tree/${revisionOf(options)}?recursive=true`;
  while (url !== undefined) {
    const address: string = url;
    const { entries, next } = await transfer(address, options, () => ({}), async (response) => {
      const link = /<([^>]+)>;\s*rel="next"/.exec(response.headers.get("link") ?? "")?.[1];
      return { entries: await response.json() as unknown, next: link && new URL(link, address).href };
    });
    if (!Array.isArray(entries)) throw new WeightsError(`${address}: the listing is not a list`);
    for (const entry of entries) {
      const file = listedFile(entry, address);
      if (file && (isModelFile(file.path) || isGgufFile(file.path))) all.push(file);
    }
    url = next;
  }
  if (options.gguf !== undefined) {
    const wanted = ggufFiles(id, all.map(({ path }) => path), options.gguf);
    return all.filter(({ path }) => wanted.includes(path)).sort((a, b) => a.size - b.size);
  }
  const files = all.filter(({ path }) => isModelFile(path));
  const names = new Set(files.map((file) => file.path));
  for (const name of NEEDED) {
    if (names.has(name)) continue;
    const models = all.filter(({ path }) => isGgufFile(path)).map(({ path }) => path);
    const hint = models.length > 0 ? `, but GGUF files: ask for one of ${models.join(", ")}` : "";
    throw new WeightsError(`${id} at ${options.revision ?? "main"}: has no ${name}${hint}`);
  }
  if (!names.has("model.safetensors") && !names.has("model.safetensors.index.json")) {
    throw new WeightsError(
      `${id} at ${options.revision ?? "main"}: has no model.safetensors and no model.safetensors.index.json`,
    );
  }
  // One file is what openModel prefers to shards. Small files first: what is wrong with a model shows before its weights.
  const single = names.has("model.safetensors");
  return files.filter(({ path }) => !single || !/^model-|\.index\.json$/.test(path)).sort((a, b) => a.size - b.size);
}

function listedFile(entry: unknown, address: string): HubFile | undefined {
  if (!isObject(entry) || typeof entry.path !== "string") {
    throw new WeightsError(`${address}: the listing has an entry without a path`);
  }
  const { path, size, oid, lfs } = entry;
  if (/[\\\0]/.test(path) || path.split("/").some((part) => part === ".." || part === "." || part === "")) {
    throw new WeightsError(`${address}: the listing names ${JSON.stringify(path)}, which would leave the folder`);
  }
  if (entry.type !== "file") return undefined;
  const large = isObject(lfs) ? lfs : undefined;
  const bytes = large?.size ?? size;
  if (!Number.isSafeInteger(bytes) || (bytes as number) < 0) {
    throw new WeightsError(`${address}: the listing gives no size for ${path}`);
  }
  const sum = large ? large.oid : oid;
  if (typeof sum !== "string" || !(large ? /^[0-9a-f]{64}$/ : /^[0-9a-f]{40}$/).test(sum)) {
    throw new WeightsError(`${address}: the listing gives no checksum for ${path}`);
  }
  return { path, size: bytes as number, ...(large ? { sha256: sum } : { gitSha1: sum }) };
}

async function pullFile(file: HubFile, options: PullOptions): Promise<PulledFile["outcome"]> {
  const target = join(options.folder, file.path);
  const part = `${target}.part`;
  mkdirSync(dirname(target), { recursive: true });
  if (existsSync(target) && await wrongWith(target, file, options) === undefined) {
    report(options, file, "done", file.size);
    return "present";
  }
  let resumed = sizeOf(part) > 0;
  for (;;) {
    await download(file, part, options);
    const wrong = await wrongWith(part, file, options);
    if (wrong === undefined) break;
    rmSync(part, { force: true });
    // The beginning may come from an earlier revision of the file.
    if (!resumed) throw new WeightsError(`${target}: ${wrong}; the download was deleted`);
    report(options, file, "retry", 0, wrong);
    resumed = false;
  }
  renameSync(part, target);
  report(options, file, "done", file.size);
  return resumed ? "resumed" : "downloaded";
}

/** Appends to the part file until it has the listed size, over as many connections as it takes. */
async function download(file: HubFile, part: string, options: PullOptions): Promise<void> {
  const url = `${endpoint(options)}/${options.id}/resolve/${revisionOf(options)}/${
    file.path.split("/").map(encodeURIComponent).join("/")
  }`;
  if (sizeOf(part) > file.size) rmSync(part);
  if (file.size > 0 && sizeOf(part) === file.size) return;
  let have = 0;
  const range = (): Record<string, string> => {
    have = sizeOf(part);
    return have > 0 ? { range: `bytes=${have}-` } : {};
  };
  await transfer(url, options, range, async (response, reached) => {
    const partial = response.status === 206;
    if (partial && !response.headers.get("content-range")?.startsWith(`bytes ${have}-`)) {
      throw new Error("the server sent another range than was asked for");
    }
    await append(part, partial ? have : 0, response, file, options, reached);
    if (sizeOf(part) < file.size) throw new Error(`the connection ended after ${sizeOf(part)} of ${file.size} bytes`);
  }, (cause) => report(options, file, "retry", sizeOf(part), cause));
}

async function append(
  part: string,
  from: number,
  response: Response,
  file: HubFile,
  options: PullOptions,
  reached: (bytes: number) => void,
): Promise<void> {
  const handle = await open(part, from > 0 ? "r+" : "w").catch((error) => {
    throw new WeightsError(`${part}: ${fileErrorCause(error)}`);
  });
  let position = from;
  try {
    for await (const chunk of response.body ?? []) {
      if (position + chunk.byteLength > file.size) {
        throw new WeightsError(`${part}: the server sent more than the ${file.size} bytes of the listing`);
      }
      for (let done = 0; done < chunk.byteLength;) {
        done += (await handle.write(chunk, done, chunk.byteLength - done, position + done).catch((error) => {
          throw new WeightsError(`${part}: cannot be written: ${fileErrorCause(error)}`);
        })).bytesWritten;
      }
      position += chunk.byteLength;
      reached(position);
      report(options, file, "download", position);
    }
  } finally {
    await handle.close();
  }
}

/** What is wrong with a file against the listing, or undefined. */
async function wrongWith(path: string, file: HubFile, options: PullOptions): Promise<string | undefined> {
  const size = sizeOf(path);
  if (size !== file.size) return `has ${size} bytes, the hub lists ${file.size}`;
  const hash = createHash(file.sha256 ? "sha256" : "sha1");
  if (!file.sha256) hash.update(`blob ${size}\0`);
  let bytes = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
    options.signal?.throwIfAborted();
    hash.update(chunk as Uint8Array);
    report(options, file, "verify", bytes += (chunk as Uint8Array).byteLength);
  }
  const found = hash.digest("hex");
  const expected = file.sha256 ?? file.gitSha1;
  if (found === expected) return undefined;
  return `checksum mismatch: ${file.sha256 ? "SHA-256" : "git SHA-1"} is ${found}, the hub lists ${expected}`;
}

/** Checks a folder without network: against the record of its download where there is one; always the weights' structure. */
async function checkFolder(options: PullOptions): Promise<PullResult> {
  const { folder } = options;
  if (!existsSync(folder)) throw new WeightsError(`${folder}: no such folder; run once without offline`);
  const files: PulledFile[] = [];
  const path = join(folder, RECORD), { gguf } = options;
  if (gguf !== undefined && !existsSync(path)) {
    throw new WeightsError(`${folder}: has no record of a download; run once without offline`);
  }
  if (existsSync(path)) {
    const record = readObject(path);
    const revision = options.revision ?? "main";
    if (record.id !== options.id || record.revision !== revision || !Array.isArray(record.files)) {
      throw new WeightsError(`${folder}: holds ${record.id} at ${record.revision}, not ${options.id} at ${revision}`);
    }
    const all = record.files as HubFile[];
    const wanted = gguf === undefined ? undefined : ggufFiles(folder, all.map(({ path }) => path), gguf);
    for (const file of all.filter(({ path }) => wanted ? wanted.includes(path) : !isGgufFile(path))) {
      if (!wanted && !isModelFile(file.path)) {
        throw new WeightsError(`${path}: names ${file.path}, which is no file of a model`);
      }
      const target = join(folder, file.path);
      const wrong = existsSync(target) ? await wrongWith(target, file, options) : "is missing";
      if (wrong !== undefined) throw new WeightsError(`${target}: ${wrong}; run once without offline`);
      report(options, file, "done", file.size);
      files.push({ ...file, outcome: "present" });
    }
  }
  if (gguf === undefined) { for (const name of NEEDED) readObject(join(folder, name)); }
  return { folder, model: checkStructure(folder, gguf === undefined ? undefined : files), files };
}

function endpoint(options: PullOptions): string {
  const address = (options.endpoint ?? "https://huggingface.co").replace(/\/+$/, "");
  if (!/^https?:\/\/[^/]/.test(address) || !URL.canParse(address)) {
    throw new WeightsError(`${address}: not the address of a hub; expected https://...`);
  }
  return address;
}

function revisionOf(options: PullOptions): string {
  return encodeURIComponent(options.revision ?? "main");
}

/** Bytes of a file; 0 where it is not there. */
function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}

function report(options: PullOptions, file: HubFile, step: PullProgress["step"], bytes: number, cause?: string): void {
  options.onProgress?.({ file: file.path, step, bytes, size: file.size, ...(cause === undefined ? {} : { cause }) });
}
