/** What `pagoda help` prints. */
import {doctorHelp} from '#cli/doctor.ts';
import {exportHelp} from '#cli/export.ts';
import {importHelp} from '#cli/import.ts';
import {pageserversHelp} from '#cli/pageservers.ts';
import {inspectHelp} from '#cli/inspect/command.ts';
import {psqlHelp} from '#cli/psql.ts';
import {roleNames} from '#cli/roles.ts';
import {branchesHelp} from '#cli/branches.ts';
import {safekeepersHelp} from '#cli/safekeepers.ts';

export const help = `pagoda: serverless Postgres on this machine

  pagoda up [--data DIR] [--port N] [--api-port N] [--internal-port N] [--listen ADDRESS] [--shards N]
                         start everything (also: npm start); Ctrl-C stops it in order
  pagoda status [-o json|env]
                         what runs, and how to connect
  pagoda stop            stop a running installation
  pagoda logs [ROLE]     last lines of all logs, or of one (control, safekeeper-1, compute-ep-…)
${psqlHelp}${importHelp}${exportHelp}  pagoda reset [--yes]   stop, and delete everything this installation keeps on this machine
${doctorHelp}  pagoda wal dump BRANCH|FOLDER [--start LSN] [--end LSN] [--rmgr NAME] [--stats] [--limit N]
                         WAL records of a branch and its ancestors, as pg_waldump prints them
${inspectHelp}${branchesHelp}${safekeepersHelp}${pageserversHelp}  pagoda wal fsck BRANCH|FOLDER
                         reads all WAL there is of a branch, on the safekeepers of this machine and in the archive
  pagoda help

  --data DIR             data directory (default: PAGODA_DATA, else ./.pagoda)
  --port N               Postgres clients (default 54320)
  --api-port N           API v2 (default 54321)
  --shards N             shards of every project made from now on (default 1): docs/operating.md
  --pageservers N        pageservers of pagoda up (default 1): docs/operating.md
  --internal-port N      first of 20 ports for the roles among themselves (default 54330)

A single role, for an installation on several machines: pagoda ROLE --config FILE
  roles: ${roleNames.join(', ')}
`;
