/** `npm run setup`: what `npm start` does first, on its own. */
import {systemDisk} from '#runtime/disk.ts';
import {exitProcess, printLine} from '#runtime/process.ts';
import {setUp} from '#cli/setup.ts';

try {
  const installation = await setUp(systemDisk, printLine);
  printLine(
    `PostgreSQL ${installation.serverVersion} in ${installation.binDir}, extension in ${installation.extensionLibrary}`,
  );
} catch (error) {
  printLine((error as Error).message);
  exitProcess(1);
}
