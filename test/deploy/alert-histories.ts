/**
 * Histories of metrics, minute by minute, and which alerts have to fire in them: for each alert one in which it does. Values are promtool's:
 * `1x60` is 1, and 60 minutes of it more, `0+1x60` grows by one a minute, `_x10` are ten minutes without a sample.
 */
export interface History {
  readonly name: string
  readonly series: Readonly<Record<string, string>>
  /** Alert → a time at which it fires, and with which labels. */
  readonly fires: Readonly<Record<string, { at: string; labels: string }>>
  /** Alert → a time at which it does not. */
  readonly silent?: Readonly<Record<string, string>>
}

const agent = 'job="deltamapper-agent",node_name="n1"'
const calls = (code: string, error: string) => `deltamapper_calls_total{${agent},grpc_code="${code}",error="${error}"}`
const checks = (outcome: string) => `deltamapper_engine_checks_total{${agent},outcome="${outcome}"}`

/** Of two hours in which all is well, no alert may fire. */
export const quiet: Readonly<Record<string, string>> = {
  [`up{${agent},instance="a"}`]: '1x120',
  [`deltamapper_ready{${agent},instance="a"}`]: '1x120',
  'deltamapper_router_nodes{job="deltamapper-router",instance="r"}': '3x120',
  'deltamapper_router_cluster_age_seconds{job="deltamapper-router",instance="r"}': '0x120',
  [calls('OK', '')]: '0+5x120',
  [calls('NOT_FOUND', 'DM_SNAPSHOT_NOT_FOUND')]: '0+1x120',
  'deltamapper_router_calls_total{job="deltamapper-router",node="n1",grpc_code="OK"}': '0+5x120',
  [`deltamapper_pool_data_bytes{${agent},pool="p"}`]: '1000x120',
  [`deltamapper_pool_data_used_bytes{${agent},pool="p"}`]: '500+1x120',
  [`deltamapper_pool_metadata_bytes{${agent},pool="p"}`]: '1000x120',
  [`deltamapper_pool_metadata_used_bytes{${agent},pool="p"}`]: '500x120',
  [`deltamapper_pool_state{${agent},pool="p",state="read-write"}`]: '1x120',
  [`deltamapper_pool_needs_check{${agent},pool="p"}`]: '0x120',
  [`deltamapper_pools_looked_at_timestamp_seconds{${agent}}`]: '0+60x120',
  [`deltamapper_cow_store_bytes{${agent},snapshot="s"}`]: '1000x120',
  [`deltamapper_cow_store_used_bytes{${agent},snapshot="s"}`]: '100+1x120',
  [`deltamapper_cow_store_lost{${agent},snapshot="s"}`]: '0x120',
  [`deltamapper_era_looked_at_timestamp_seconds{${agent}}`]: '0+60x120',
  [`deltamapper_era_suspended{${agent},volume="v"}`]: '0x120',
  [`deltamapper_era_problem{${agent},volume="v"}`]: '0x120',
  [`deltamapper_era_history_lost{${agent},volume="v"}`]: '0x120',
  [`deltamapper_era_metadata_bytes{${agent},volume="v"}`]: '1000x120',
  [`deltamapper_era_metadata_used_bytes{${agent},volume="v"}`]: '100+1x120',
  [`deltamapper_leases_held{${agent}}`]: '0 1 1 0x117',
  [`deltamapper_lease_held_seconds_count{${agent},outcome="released"}`]: '0+1x120',
  // Somebody else holds the metadata snapshot now and then.
  [checks('agreed')]: '0+2x120',
  [checks('disagreed')]: '0x120',
  [checks('unchecked')]: '0+1x120',
  [`deltamapper_refused_clients_total{${agent}}`]: '0x120',
  [`deltamapper_catalog_bytes{${agent}}`]: '1000000x120',
  'deltamapper_backup_newest_point_timestamp_seconds{volume="v",instance="h"}': '0x120',
  [`deltamapper_base_records_not_kept_total{${agent}}`]: '0x120',
  [`deltamapper_certificate_expiry_timestamp_seconds{${agent}}`]: '7776000x120'
}

export const histories: readonly History[] = [
  {
    name: 'a volume whose newest backup is two days old',
    series: { 'deltamapper_backup_newest_point_timestamp_seconds{volume="vg0/mail",instance="h"}': '-172800x60' },
    fires: { DeltamapperBackupOld: { at: '30m', labels: 'instance="h",severity="warning",volume="vg0/mail"' } }
  },
  {
    name: 'agents and routers that are not there, or not ready, or not reached',
    series: {
      [`up{${agent},instance="a"}`]: '1x5 0x60',
      'deltamapper_ready{job="deltamapper-router",instance="r"}': '1x5 0x60',
      'deltamapper_router_nodes{job="deltamapper-router",instance="r"}': '3x5 0x60',
      'deltamapper_router_cluster_age_seconds{job="deltamapper-router",instance="r"}': '0x5 60+60x60',
      'deltamapper_router_calls_total{job="deltamapper-router",node="n1",grpc_code="UNAVAILABLE"}': '0+1x60',
      'deltamapper_calls_total{job="deltamapper-router",grpc_code="UNAVAILABLE",error="DM_AGENT_UNREACHABLE"}':
        '0+1x60',
      [`deltamapper_refused_clients_total{${agent}}`]: '0+1x60'
    },
    fires: {
      DeltamapperDown: { at: '30m', labels: `severity="critical",${agent},instance="a"` },
      DeltamapperNotReady: { at: '30m', labels: 'severity="warning",job="deltamapper-router",instance="r"' },
      DeltamapperNoAgents: { at: '30m', labels: 'severity="critical",job="deltamapper-router",instance="r"' },
      DeltamapperClusterNotRead: { at: '30m', labels: 'severity="warning",job="deltamapper-router",instance="r"' },
      DeltamapperAgentUnreachable: { at: '30m', labels: 'severity="warning",node="n1"' },
      DeltamapperCallsFail: {
        at: '40m',
        labels: 'severity="warning",job="deltamapper-router",error="DM_AGENT_UNREACHABLE"'
      },
      DeltamapperClientsRefused: { at: '30m', labels: `severity="warning",${agent}` }
    },
    // A restart is no alarm.
    silent: { DeltamapperDown: '8m', DeltamapperNotReady: '8m', DeltamapperNoAgents: '8m' }
  },
  {
    name: 'a record that could not be kept',
    series: { [`deltamapper_base_records_not_kept_total{${agent}}`]: '0x10 1x200' },
    fires: { DeltamapperBaseRecordsNotKept: { at: '30m', labels: `severity="warning",${agent}` } },
    silent: { DeltamapperBaseRecordsNotKept: '8m' }
  },
  {
    name: 'a single event is enough, where it is the first of its series',
    series: {
      [calls('DATA_LOSS', 'DM_METADATA_DAMAGED')]: '_x10 1x200',
      [calls('INTERNAL', 'DM_ENGINES_DISAGREE')]: '_x10 1x200',
      [calls('DEADLINE_EXCEEDED', 'DM_DEADLINE_EXCEEDED')]: '_x10 1x200',
      [calls('FAILED_PRECONDITION', 'DM_BASE_LOST')]: '_x10 1x200',
      [`deltamapper_lease_held_seconds_count{${agent},outcome="lost"}`]: '_x10 1x200'
    },
    fires: {
      DeltamapperDamagedMetadata: { at: '20m', labels: `severity="critical",${agent},error="DM_METADATA_DAMAGED"` },
      DeltamapperEnginesDisagree: { at: '20m', labels: `severity="critical",${agent}` },
      DeltamapperCallsCutOff: { at: '20m', labels: `severity="warning",${agent}` },
      DeltamapperFullBackups: { at: '20m', labels: 'severity="info",node_name="n1",error="DM_BASE_LOST"' },
      DeltamapperLeasesLost: { at: '20m', labels: `severity="warning",${agent}` }
    },
    silent: { DeltamapperDamagedMetadata: '2h', DeltamapperCallsFail: '2h' }
  },
  {
    name: 'and where it is not',
    series: { [calls('DATA_LOSS', 'DM_METADATA_DAMAGED')]: '1x100 2x100' },
    fires: {
      DeltamapperDamagedMetadata: { at: '110m', labels: `severity="critical",${agent},error="DM_METADATA_DAMAGED"` }
    },
    silent: { DeltamapperDamagedMetadata: '90m' }
  },
  {
    name: 'the tools fail in the middle of the night, for a few calls',
    series: { [checks('agreed')]: '10x200', [checks('disagreed')]: '0x200', [checks('unchecked')]: '0x100 5x100' },
    fires: { DeltamapperAnswersUnchecked: { at: '3h', labels: `severity="warning",${agent}` } },
    silent: { DeltamapperAnswersUnchecked: '90m' }
  },
  {
    name: 'pools in trouble',
    series: {
      [`deltamapper_pool_data_bytes{${agent},pool="p"}`]: '100x120',
      [`deltamapper_pool_data_used_bytes{${agent},pool="p"}`]: '95x120',
      [`deltamapper_pool_metadata_bytes{${agent},pool="p"}`]: '100x120',
      [`deltamapper_pool_metadata_used_bytes{${agent},pool="p"}`]: '85x120',
      [`deltamapper_pool_state{${agent},pool="p",state="read-only"}`]: '1x120',
      [`deltamapper_pool_needs_check{${agent},pool="p"}`]: '1x120',
      [`deltamapper_pools_looked_at_timestamp_seconds{${agent}}`]: '60x120',
      [`deltamapper_leases_held{${agent}}`]: '1x120',
      [`deltamapper_catalog_bytes{${agent}}`]: '2000000000x120'
    },
    fires: {
      DeltamapperPoolDataFull: { at: '20m', labels: `severity="warning",${agent},pool="p"` },
      DeltamapperPoolMetadataFull: { at: '20m', labels: `severity="warning",${agent},pool="p"` },
      DeltamapperPoolUnwell: { at: '20m', labels: `severity="critical",${agent},pool="p",state="read-only"` },
      DeltamapperPoolNeedsCheck: { at: '20m', labels: `severity="critical",${agent},pool="p"` },
      DeltamapperPoolsNotSeen: { at: '20m', labels: `severity="warning",${agent}` },
      DeltamapperLeaseHeldLong: { at: '20m', labels: `severity="warning",${agent}` },
      DeltamapperCatalogLarge: { at: '90m', labels: `severity="info",${agent}` }
    }
  },
  {
    name: 'stores of classic snapshots that fill up, and one that has overflowed',
    series: {
      [`deltamapper_cow_store_bytes{${agent},snapshot="s"}`]: '1000x60',
      [`deltamapper_cow_store_used_bytes{${agent},snapshot="s"}`]: '700+10x25 900x35',
      [`deltamapper_cow_store_lost{${agent},snapshot="t"}`]: '0x5 1x55'
    },
    fires: {
      DeltamapperSnapshotStoreFilling: { at: '30m', labels: `severity="warning",${agent},snapshot="s"` },
      DeltamapperSnapshotStoreLost: { at: '30m', labels: `severity="warning",${agent},snapshot="t"` }
    },
    silent: { DeltamapperSnapshotStoreFilling: '5m', DeltamapperSnapshotStoreLost: '3m' }
  },
  {
    name: 'tracked volumes: one suspended for good, one whose metadata fills up, one whose history was lost',
    series: {
      // A snapshot suspends it for a moment, which a scrape may see; then it stays so.
      [`deltamapper_era_suspended{${agent},volume="s"}`]: '0 1 0x23 1x35',
      [`deltamapper_era_metadata_bytes{${agent},volume="m"}`]: '1000x60',
      [`deltamapper_era_metadata_used_bytes{${agent},volume="m"}`]: '700+10x60',
      [`deltamapper_era_problem{${agent},volume="m"}`]: '0x11 1x49',
      [`deltamapper_era_history_lost{${agent},volume="h"}`]: '0x5 1x30 0x25'
    },
    fires: {
      DeltamapperTrackedVolumeSuspended: { at: '30m', labels: `severity="critical",${agent},volume="s"` },
      DeltamapperTrackedMetadataFull: { at: '30m', labels: `severity="warning",${agent},volume="m"` },
      DeltamapperTrackedVolumeProblem: { at: '30m', labels: `severity="warning",${agent},volume="m"` },
      DeltamapperTrackedHistoryLost: { at: '30m', labels: `severity="info",${agent},volume="h"` }
    },
    silent: {
      DeltamapperTrackedVolumeSuspended: '20m',
      DeltamapperTrackedMetadataFull: '5m',
      DeltamapperTrackedHistoryLost: '50m'
    }
  },
  {
    name: 'tracked volumes that cannot be looked at',
    series: { [`deltamapper_era_looked_at_timestamp_seconds{${agent}}`]: '60x60' },
    fires: { DeltamapperPoolsNotSeen: { at: '20m', labels: `severity="warning",${agent}` } }
  },
  {
    name: 'a certificate that is not renewed',
    series: { [`deltamapper_certificate_expiry_timestamp_seconds{${agent}}`]: '864000x200' },
    fires: { DeltamapperCertificateExpires: { at: '90m', labels: `severity="warning",${agent}` } },
    silent: { DeltamapperCertificateExpired: '90m' }
  },
  {
    name: 'one that has expired',
    series: { 'deltamapper_certificate_expiry_timestamp_seconds{job="deltamapper-router"}': '3600x200' },
    fires: { DeltamapperCertificateExpired: { at: '90m', labels: 'severity="critical",job="deltamapper-router"' } }
  }
]
