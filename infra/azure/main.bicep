// The suite on Azure Functions, Flex Consumption.
//
//   storage account ── blobs: the package, what the host keeps     Key Vault ── connection strings, passwords
//        │             queues: export-work, export-work-poison         │
//        └────────────── function app, one identity ───────────────────┘
//                             │
//            Log Analytics, Application Insights, alerts on logs
//
// Nobody holds a key of the storage account: the app, its host and who deploys come with Entra ID.

@description('First part of all names. Its letters and digits are used, as far as a name has room for them.')
@minLength(1)
@maxLength(60)
param name string = 'atlas'

@description('Region; one that has Flex Consumption.')
param location string = resourceGroup().location

@description('Address of the openEHR server (https).')
param openehrBaseUrl string

@description('Further settings of Atlas as ATLAS_<SECTION>_<KEY>: value (docs/configuration.md). What this file sets itself stays as it is. A name that stands for a secret ends the deployment: name its secret in vaultSettings.')
param settings object = {}

@description('Settings whose value lies in the Key Vault, as name of the variable: name of the secret.')
param vaultSettings object = {
  ATLAS_POSTGRESQL_CONNECTION_STRING: 'postgresql-connection-string'
}

@description('Object id of whoever writes the secrets into the vault and publishes the package: a person or a group.')
param deployerObjectId string

@description('What the deployer is.')
@allowed(['User', 'Group', 'ServicePrincipal'])
param deployerType string = 'User'

@description('Most readers of the openEHR server at the same time, over all instances.')
@minValue(1)
@maxValue(100)
param slots int = 2

@description('When the planner runs: six fields, seconds first, UTC.')
param planSchedule string = '0 */15 * * * *'

@description('When the watermark report is made: six fields, seconds first, UTC. At least every ten minutes: an alert fires without reports.')
param reportSchedule string = '0 */5 * * * *'

@description('Most instances of each function. Flex Consumption takes no less than 40; what protects the openEHR server is `slots`.')
@minValue(40)
@maxValue(1000)
param maximumInstanceCount int = 40

@description('Memory of an instance in MB.')
@allowed([2048, 4096])
param instanceMemoryMB int = 2048

@description('Subnet for outgoing traffic, delegated to Microsoft.App/environments, from which PostgreSQL and the openEHR server can be reached. Empty: none.')
param subnetId string = ''

@description('Subnet for private endpoints of the storage account and the vault, in the network of subnetId. With it, both answer on no public address any more. Empty: none.')
param privateEndpointSubnetId string = ''

@description('Ids of the private DNS zones privatelink.blob.…, privatelink.queue.… and privatelink.vaultcore.azure.net, linked to that network; needed with privateEndpointSubnetId.')
param privateDnsZoneIds object = {
  blob: ''
  queue: ''
  vault: ''
}

@description('Whether the functions are reached over the internet. Disabled: only by a private endpoint of your own, or from inside of Azure by your rules.')
@allowed(['Enabled', 'Disabled'])
param appPublicNetworkAccess string = 'Enabled'

@description('Client id of an application in Entra ID that stands for the HTTP functions. With it every call needs a token for that application; a function key alone lets nobody in. Empty: function keys only.')
param entraClientId string = ''

@description('Object ids of the users and applications whose tokens count. Empty: everybody in the tenant who gets one.')
param entraPrincipalIds array = []

@description('The copy may be this far behind the openEHR server before an alert fires.')
@minValue(60)
param lagAlertSeconds int = 3600

@description('Ids of the action groups that alerts notify. Empty: alerts are only shown.')
param actionGroupIds array = []

@description('How long log lines are kept.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

// Names are worldwide, and each kind of resource has a length and characters of its own. So only letters and digits of
// `name` are used, and they are shortened; the suffix, which makes a name unique, always stays whole.
var suffix = uniqueString(resourceGroup().id, name)
var characters = [
  for i in range(0, length(name)): contains('abcdefghijklmnopqrstuvwxyz0123456789', substring(toLower(name), i, 1)) ? substring(toLower(name), i, 1) : ''
]
var letters = join(characters, '')
var stem = empty(letters) ? 'atlas' : letters
// The Functions host knows an app by the first 32 characters of its name.
var unique = '${take(stem, 18)}-${suffix}'
var vaultName = 'kv-${take(stem, 7)}-${suffix}'
var workQueue = 'export-work'
var deadQueue = 'export-work-poison'
// host.json has the same time-out; tests/tests/infra.rs compares them.
var timeoutSeconds = 600

var isPrivate = empty(privateEndpointSubnetId) ? false : true

// Built-in roles.
var roles = {
  blobDataOwner: 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'
  keyVaultSecretsOfficer: 'b86a8fe4-44ce-4948-aee5-eccb2c155cd7'
  keyVaultSecretsUser: '4633458b-17de-408a-b874-0445c86b69e6'
  metricsPublisher: '3913510d-42f4-4e42-8a64-420c390055eb'
  queueDataContributor: '974c5e8b-45b9-4653-ba55-5f855dd0fb88'
}

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: '${unique}-identity'
  location: location
}

// ---------------------------------------------------------------- storage

resource storage 'Microsoft.Storage/storageAccounts@2025-06-01' = {
  name: 'st${take(stem, 9)}${suffix}'
  location: location
  kind: 'StorageV2'
  sku: {
    name: 'Standard_LRS'
  }
  properties: {
    allowBlobPublicAccess: false
    allowSharedKeyAccess: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    networkAcls: {
      bypass: 'None'
      defaultAction: isPrivate ? 'Deny' : 'Allow'
    }
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
    supportsHttpsTrafficOnly: true
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2025-06-01' = {
  parent: storage
  name: 'default'
}

resource packages 'Microsoft.Storage/storageAccounts/blobServices/containers@2025-06-01' = {
  parent: blobs
  name: 'packages'
}

resource queues 'Microsoft.Storage/storageAccounts/queueServices@2025-06-01' = {
  parent: storage
  name: 'default'
}

resource work 'Microsoft.Storage/storageAccounts/queueServices/queues@2025-06-01' = {
  parent: queues
  name: workQueue
}

resource dead 'Microsoft.Storage/storageAccounts/queueServices/queues@2025-06-01' = {
  parent: queues
  name: deadQueue
}

// The host keeps leases, timer state and keys in blobs of its own, and asks for this role.
resource ownsBlobs 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: storage
  name: guid(storage.id, identity.id, roles.blobDataOwner)
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.blobDataOwner)
  }
}

// Contributor, because the host renews a message while it is worked on, which Message Processor does not allow; of
// these two queues only.
resource usesWork 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: work
  name: guid(work.id, identity.id, roles.queueDataContributor)
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.queueDataContributor)
  }
}

resource usesDead 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: dead
  name: guid(dead.id, identity.id, roles.queueDataContributor)
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.queueDataContributor)
  }
}

// ---------------------------------------------------------------- secrets

resource vault 'Microsoft.KeyVault/vaults@2025-05-01' = {
  name: vaultName
  location: location
  properties: {
    tenantId: subscription().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    enableSoftDelete: true
    enablePurgeProtection: true
    networkAcls: {
      bypass: 'None'
      defaultAction: isPrivate ? 'Deny' : 'Allow'
    }
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
  }
}

resource readsSecrets 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: vault
  name: guid(vault.id, identity.id, roles.keyVaultSecretsUser)
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.keyVaultSecretsUser)
  }
}

resource writesSecrets 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: vault
  name: guid(vault.id, deployerObjectId, roles.keyVaultSecretsOfficer)
  properties: {
    principalId: deployerObjectId
    principalType: deployerType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.keyVaultSecretsOfficer)
  }
}

// ---------------------------------------------------------------- logs

resource logs 'Microsoft.OperationalInsights/workspaces@2025-07-01' = {
  name: '${unique}-logs'
  location: location
  properties: {
    retentionInDays: logRetentionDays
    sku: {
      name: 'PerGB2018'
    }
  }
}

// Who reads or changes a secret, and who writes or takes a message.
resource vaultAudit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: vault
  name: 'audit'
  properties: {
    workspaceId: logs.id
    logs: [
      {
        categoryGroup: 'audit'
        enabled: true
      }
    ]
  }
}

resource queueAudit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: queues
  name: 'audit'
  properties: {
    workspaceId: logs.id
    logs: [
      {
        categoryGroup: 'audit'
        enabled: true
      }
    ]
  }
}

resource blobAudit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: blobs
  name: 'audit'
  properties: {
    workspaceId: logs.id
    logs: [
      {
        categoryGroup: 'audit'
        enabled: true
      }
    ]
  }
}

resource insights 'Microsoft.Insights/components@2020-02-02' = {
  name: '${unique}-insights'
  location: location
  kind: 'web'
  properties: {
    Application_Type: 'web'
    DisableLocalAuth: true
    WorkspaceResourceId: logs.id
  }
}

resource writesTelemetry 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: insights
  name: guid(insights.id, identity.id, roles.metricsPublisher)
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.metricsPublisher)
  }
}

// ---------------------------------------------------------------- private endpoints

var allTargets = [
  {
    group: 'blob'
    id: storage.id
    zone: privateDnsZoneIds.blob
  }
  {
    group: 'queue'
    id: storage.id
    zone: privateDnsZoneIds.queue
  }
  {
    group: 'vault'
    id: vault.id
    zone: privateDnsZoneIds.vault
  }
]
var privateTargets = isPrivate ? allTargets : []

resource endpoints 'Microsoft.Network/privateEndpoints@2024-05-01' = [
  for target in privateTargets: {
    name: '${unique}-${target.group}'
    location: location
    properties: {
      subnet: {
        id: privateEndpointSubnetId
      }
      privateLinkServiceConnections: [
        {
          name: target.group
          properties: {
            privateLinkServiceId: target.id
            groupIds: [
              target.group
            ]
          }
        }
      ]
    }
  }
]

resource endpointNames 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-05-01' = [
  for target in privateTargets: {
    name: '${unique}-${target.group}/default'
    properties: {
      privateDnsZoneConfigs: [
        {
          name: target.group
          properties: {
            privateDnsZoneId: target.zone
          }
        }
      ]
    }
    dependsOn: [
      endpoints
    ]
  }
]

// ---------------------------------------------------------------- functions

// Settings are shown by the portal, and to whoever may read the app.
var settingNames = [
  for setting in items(settings): setting.key
]
var secretWords = [
  'PASSWORD'
  'CONNECTION_STRING'
  'CLIENT_SECRET'
  'COSMOSDB_KEY'
  'OPENEHR_TOKEN,'
  'SERVE_TOKEN'
  'ACCOUNT_KEY'
  'ACCESS_KEY'
  'CREDENTIAL'
]
var settingText = '${toUpper(join(settingNames, ','))},'
var secretsAmongSettings = [
  for word in secretWords: contains(settingText, word) ? word : ''
]
// This is no JSON: the deployment ends with the text.
var plainSettings = empty(join(secretsAmongSettings, '')) ? settings : json('settings: a password, token, key or connection string is no setting; name its secret in vaultSettings')

var defaultSettings = {
  ATLAS_DATABASE_TARGET: 'postgresql'
  ATLAS_ENVIRONMENT: 'production'
  ATLAS_POSTGRESQL_MAX_CONNECTIONS: '4'
  ATLAS_POSTGRESQL_SSL_MODE: 'verify-full'
}

// The program reads these itself, as the identity of the app.
var secretTexts = [
  for secret in items(vaultSettings): '"${secret.key}":"keyvault:https://${vaultName}${environment().suffixes.keyvaultDns}/secrets/${secret.value}"'
]
var secretSettings = json('{${join(secretTexts, ',')}}')

// Neither `settings` nor `vaultSettings` can change these.
var ownSettings = {
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'Authorization=AAD;ClientId=${identity.properties.clientId}'
  APPLICATIONINSIGHTS_CONNECTION_STRING: insights.properties.ConnectionString
  ATLAS_FUNCTIONS_TIMEOUT_SECONDS: string(timeoutSeconds)
  ATLAS_OPENEHR_BASE_URL: openehrBaseUrl
  ATLAS_OPENEHR_QUERY_PARALLEL: string(slots)
  ATLAS_QUEUE_URL: '${storage.properties.primaryEndpoints.queue}${workQueue}'
  ATLAS_SCHEDULE_PLAN: planSchedule
  ATLAS_SCHEDULE_REPORT: reportSchedule
  AZURE_CLIENT_ID: identity.properties.clientId
  AzureWebJobsStorage__accountName: storage.name
  AzureWebJobsStorage__clientId: identity.properties.clientId
  AzureWebJobsStorage__credential: 'managedidentity'
  WorkStorage__clientId: identity.properties.clientId
  WorkStorage__credential: 'managedidentity'
  WorkStorage__queueServiceUri: storage.properties.primaryEndpoints.queue
}

resource plan 'Microsoft.Web/serverfarms@2025-03-01' = {
  name: '${unique}-plan'
  location: location
  kind: 'functionapp'
  sku: {
    tier: 'FlexConsumption'
    name: 'FC1'
  }
  properties: {
    reserved: true
  }
}

resource app 'Microsoft.Web/sites@2025-03-01' = {
  name: unique
  location: location
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identity.id}': {}
    }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    publicNetworkAccess: appPublicNetworkAccess
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${storage.properties.primaryEndpoints.blob}${packages.name}'
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identity.id
          }
        }
      }
      runtime: {
        name: 'custom'
        version: '1.0'
      }
      scaleAndConcurrency: {
        instanceMemoryMB: instanceMemoryMB
        maximumInstanceCount: maximumInstanceCount
      }
    }
    siteConfig: {
      ftpsState: 'Disabled'
      http20Enabled: true
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
    }
  }

  dependsOn: [
    ownsBlobs
    usesWork
    usesDead
    readsSecrets
    writesTelemetry
  ]
}

// One object, so that no setting stands twice: Azure refuses that. The later one counts.
resource appSettings 'Microsoft.Web/sites/config@2025-03-01' = {
  parent: app
  name: 'appsettings'
  properties: union(defaultSettings, plainSettings, secretSettings, ownSettings)
}

// Before any function is called, and beside its key.
resource signIn 'Microsoft.Web/sites/config@2025-03-01' = {
  parent: app
  name: 'authsettingsV2'
  properties: {
    platform: {
      enabled: empty(entraClientId) ? false : true
    }
    globalValidation: {
      requireAuthentication: empty(entraClientId) ? false : true
      unauthenticatedClientAction: empty(entraClientId) ? 'AllowAnonymous' : 'Return401'
    }
    httpSettings: {
      requireHttps: true
    }
    identityProviders: {
      azureActiveDirectory: {
        enabled: empty(entraClientId) ? false : true
        registration: {
          clientId: entraClientId
          openIdIssuer: '${environment().authentication.loginEndpoint}${subscription().tenantId}/v2.0'
        }
        validation: {
          allowedAudiences: [
            'api://${entraClientId}'
            entraClientId
          ]
          defaultAuthorizationPolicy: {
            allowedPrincipals: {
              identities: entraPrincipalIds
            }
          }
        }
      }
    }
    login: {
      tokenStore: {
        enabled: false
      }
    }
  }
}

resource appAudit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: app
  name: 'audit'
  properties: {
    workspaceId: logs.id
    logs: [
      {
        category: 'AppServiceAuthenticationLogs'
        enabled: true
      }
    ]
  }
}

// Publishing is by Entra ID as well.
resource noFtpPassword 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'ftp'
  properties: {
    allow: false
  }
}

resource noScmPassword 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'scm'
  properties: {
    allow: false
  }
}

// ---------------------------------------------------------------- alerts
//
// The metrics of a storage queue know neither age nor one queue from another, and come once an hour. So alerts look at
// logs: at the calls of functions, and at the report, one line of JSON with `lag_seconds`, `slices_failed` and more.

var reports = 'AppTraces | where Message has "watermark report" | extend report = parse_json(Message) | where report.message == "watermark report"'

var alerts = [
  {
    name: 'lag'
    text: 'The copy is too far behind the openEHR server.'
    query: '${reports} | where toreal(report.lag_seconds) > ${lagAlertSeconds}'
    operator: 'GreaterThan'
    threshold: 2
    window: 'PT30M'
    windows: 1
  }
  {
    name: 'no-report'
    text: 'The watermark report has not been made for half an hour: timers, store or logs do not work.'
    query: reports
    operator: 'LessThan'
    threshold: 1
    window: 'PT30M'
    windows: 1
  }
  {
    name: 'slices-failed'
    text: 'Part of the copy was given up until someone, or the next revival, tries it again.'
    query: '${reports} | where toint(report.slices_failed) > 0'
    operator: 'GreaterThan'
    threshold: 0
    window: 'PT15M'
    windows: 1
  }
  {
    name: 'set-aside'
    text: 'A message was tried too often and set aside; its slice is marked failed.'
    query: 'AppRequests | where OperationName == "deadletter"'
    operator: 'GreaterThan'
    threshold: 0
    window: 'PT15M'
    windows: 1
  }
  {
    name: 'failures'
    text: 'Functions fail again and again.'
    query: 'AppRequests | where Success == false'
    operator: 'GreaterThan'
    threshold: 5
    window: 'PT15M'
    windows: 1
  }
  {
    name: 'planner-fails'
    text: 'A run of the planner has failed each time it was tried.'
    query: 'AppRequests | where OperationName == "planner" and Success == false'
    operator: 'GreaterThan'
    threshold: 2
    window: 'PT15M'
    windows: 1
  }
  {
    name: 'work-is-old'
    text: 'There has been work for an hour, and no worker has done any: messages wait.'
    query: 'let worked = toscalar(AppRequests | where OperationName == "worker" and Success | count); ${reports} | where toint(report.slices_waiting) > 0 and worked == 0'
    operator: 'GreaterThan'
    threshold: 5
    window: 'PT1H'
    windows: 1
  }
  {
    name: 'slice-stands-still'
    text: 'A slice has not moved for half an hour: what it reads hangs, or fails again and again.'
    query: '${reports} | where toreal(report.stalled_slice_seconds) > 1800'
    operator: 'GreaterThan'
    threshold: 0
    window: 'PT10M'
    windows: 1
  }
  {
    name: 'set-aside-is-old'
    text: 'A message that was set aside has lain there for half an hour: it cannot be noted in the store either.'
    query: '${reports} | where toint(report.dead_letters) > 0'
    operator: 'GreaterThan'
    threshold: 0
    window: 'PT10M'
    // Reports come at least every ten minutes: four windows in a row are more than half an hour.
    windows: 4
  }
]

resource rules 'Microsoft.Insights/scheduledQueryRules@2026-03-01' = [
  for alert in alerts: {
    name: '${unique}-${alert.name}'
    location: location
    properties: {
      displayName: '${stem} ${alert.name}'
      description: alert.text
      severity: 2
      enabled: true
      scopes: [
        logs.id
      ]
      evaluationFrequency: alert.windows > 1 ? alert.window : 'PT5M'
      windowSize: alert.window
      autoMitigate: true
      // The tables come into being with their first line.
      skipQueryValidation: true
      criteria: {
        allOf: [
          {
            query: alert.query
            timeAggregation: 'Count'
            operator: alert.operator
            threshold: alert.threshold
            failingPeriods: {
              numberOfEvaluationPeriods: alert.windows
              minFailingPeriodsToAlert: alert.windows
            }
          }
        ]
      }
      actions: {
        actionGroups: actionGroupIds
      }
    }
  }
]

output appName string = app.name
output appUrl string = 'https://${app.properties.defaultHostName}'
output identityClientId string = identity.properties.clientId
output storageAccount string = storage.name
output vaultName string = vault.name
output workspaceId string = logs.properties.customerId
