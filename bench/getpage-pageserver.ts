/** The page server process of `bench -- getpage`: configuration as the argument, ports on stdout. */
import type {PageserverConfig} from '#pageserver/config.ts';
import {runPageserver} from '#pageserver/server.ts';
import {createLog} from '#runtime/log.ts';

const config = JSON.parse(process.argv[2]!) as PageserverConfig;
const server = await runPageserver(config, {log: createLog({component: 'pageserver', level: 'error'})});
process.stdout.write(`${JSON.stringify({port: server.port, httpPort: server.httpPort})}\n`);
