// The conformance suite on both builds of a folder that `build.mjs --suite` made, one in SHARE of
// the drawn cases: `node test/suite.mjs FOLDER SHARE DIGEST`, where DIGEST is what the same cases
// gave elsewhere.
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, share, digest] = process.argv.slice(2);
for (const build of ["simd", "scalar"]) {
  const glue = await import(pathToFileURL(join(resolve(folder), build, "fp4.js")).href);
  const bytes = readFileSync(join(folder, build, "fp4_bg.wasm"));
  await glue.default({ module_or_path: bytes });
  const report = glue.suite(Number(share));
  const { cases, values, differ } = report;
  console.log(
    `${glue.isa()}: ${cases} cases, ${values} values compared, ${differ} differ, digest ${report.digest}`);
  if (!report.passed || !(values > 0)) {
    console.error(report.text);
    process.exit(1);
  }
  if (report.digest !== digest) {
    console.error(`its digest is not ${digest}`);
    process.exit(1);
  }
}
