import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const tinyLlama = fileURLToPath(new URL("../../assets/tiny-llama", import.meta.url));

/** Runs `work` with a fresh folder that is deleted afterwards. */
export async function withFolder(work: (folder: string) => Promise<void> | void): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-test-"));
  try {
    await work(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A safetensors file put together by hand: header as given, then `dataBytes` bytes counting up. */
export function safetensorsFile(header: unknown, dataBytes: number): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + text.byteLength + dataBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.byteLength), true);
  file.set(text, 8);
  for (let i = 0; i < dataBytes; i++) file[8 + text.byteLength + i] = i;
  return file;
}
