/** The embedded model, opened on the CPU. */
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, type Model, openModel, Tokenizer } from "../../mod.ts";
import { Device } from "../../lib/ops/mod.ts";

/** Its folder. */
export const folder: string = fileURLToPath(EMBEDDED_MODEL);

/** Its tokenizer. */
export const tokenizer: Tokenizer = Tokenizer.open(folder);

/** A device and the model on it, freed together. */
export async function openEmbedded(): Promise<{ device: Device; model: Model } & Disposable> {
  const device = Device.open({ device: "cpu" }),
    model = await openModel(device, folder),
    owned = new DisposableStack();
  for (const part of [device, model]) owned.use(part);
  return { device, model, [Symbol.dispose]: () => owned.dispose() };
}
