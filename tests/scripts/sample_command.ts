/** A command of every behaviour, run as a process by command_test.ts. */
import process from "node:process";
import { command } from "../../scripts/frame/command.ts";

await command({
  name: "sample",
  summary: "a command for its test",
  usage: "sample_command.ts [options] <behaviour>",
  options: {
    count: { type: "number", short: "c", default: 2, help: "how often" },
    json: { type: "boolean", help: "print JSON" },
  },
  positionals: [1, 1],
}, async ({ positionals: [behaviour], signal, progress }) => {
  switch (behaviour) {
    case "done":
      return console.log("done");
    case "code":
      return 3;
    case "large":
      return console.log("x".repeat(1_000_000));
    case "fail":
      setInterval(() => {}, 1000); // an open handle must not keep a failed command alive
      throw new Error("model.bin: cut short");
    case "wait": {
      console.log("waiting");
      const open = setInterval(() => {}, 1000);
      await new Promise((done) => signal.addEventListener("abort", done));
      clearInterval(open);
      console.log("cleaned");
      throw signal.reason;
    }
    case "progress": {
      const clock = performance.now;
      const display = progress("working", 10);
      display.update(1);
      performance.now = () => clock.call(performance) + 6000; // six seconds later
      display.update(5);
      display.update(6);
      performance.now = clock;
      return display.stop();
    }
    default:
      process.exit(99);
  }
});
