import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { closeAfter, idle, source, start } from "./fixture.ts";

closeAfter();

/** A metric of a text by its name, with labels as they are written. */
function values(text: string, name: string): Record<string, number> {
  const lines = text.split("\n").filter((line) => line.startsWith(`${name}{`));
  return Object.fromEntries(
    lines.map((line) => [line.slice(name.length, line.lastIndexOf("}") + 1), Number(line.split(" ").at(-1))]),
  );
}

for (const names of ["vecinfer", "vllm"] as const) {
  test(`${names}: what routers of several servers read`, async () => {
    const { server, client } = await start({
      name: "tiny",
      kv: ["vq2", "bf16"],
      sequences: 1,
      prefixes: 4,
      cacheTokens: 4096,
      metricNames: names === "vecinfer" ? undefined : names,
    });
    const read = async () => await (await fetch(`${server.url}/metrics`)).text();
    // Before the model is loaded there is nothing to tell, and no error.
    assertEquals(values(await read(), `${names}:num_requests_running`), {});
    await server.ready;
    const text = await read(), info = Object.keys(values(text, `${names}:cache_config_info`));
    assertEquals(info.length, 2);
    for (
      const label of [
        'block_size="64"',
        'num_gpu_blocks="64"',
        'cache_dtype="vq2"',
        'enable_prefix_caching="True"',
        'max_model_len="2048"',
      ]
    ) {
      assert(info[0].includes(label), info[0]);
    }
    const labels = '{model_name="tiny"}';
    const of = async (name: string) => values(await read(), `${names}:${name}`)[labels];
    const prompt = source.slice(0, 3000), body = { model: "tiny", prompt, temperature: 0, max_tokens: 120 };
    const running = [client.completions.create(body), client.completions.create({ ...body, prompt: "The kernel" })];
    let seen = [0, 0, 0];
    for (let i = 0; i < 400 && (seen[0] < 1 || seen[1] < 1); i++) {
      seen = await Promise.all([of("num_requests_running"), of("num_requests_waiting"), of("kv_cache_usage_perc")]);
    }
    assertEquals(seen.slice(0, 2), [1, 1]);
    assert(seen[2] > 0 && seen[2] < 1, `${seen[2]}`);
    await Promise.all(running);
    await client.completions.create(body);
    await idle(server);
    const [queries, hits] = [await of("prefix_cache_queries_total"), await of("prefix_cache_hits_total")];
    assert(hits > 500 && hits < queries, `${hits} of ${queries}`);
    const all = await read(),
      former = ["gpu_cache_usage_perc", "gpu_prefix_cache_hits_total", "gpu_prefix_cache_queries_total"];
    for (const name of former) assertEquals(all.includes(`vllm:${name}{`), names === "vllm", name);
    assertEquals(all.includes(names === "vllm" ? "vecinfer:" : "vllm:"), false);
    for (const name of ["request_success_total", "prompt_tokens_total", "time_to_first_token_seconds_bucket"]) {
      assert(Object.keys(values(all, `${names}:${name}`)).length > 0, name);
    }
  });
}
